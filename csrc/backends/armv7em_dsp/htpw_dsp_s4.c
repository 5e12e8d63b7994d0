/* htpw_dsp_s4.c - matrix products by packed 4-bit weights, in assembly; jobs and finishes as in htpw_dsp_dot.c.
 *
 * Eight weights are a word. AND with 0xF000F000, after a shift, leaves weights k and k + 4 at the top of its halves, which are
 * then 4096 times the weights: one instruction for two, as for int8, but half the loads. x holds x + in_offset, not doubled, in
 * the same pairs. So sums are 4096 times what they should be, below 2^31 for up to 256 columns (256 * 255 * 8 * 4096), and their
 * shift by 11 leaves them doubled. Biases come last.
 */
#include "htpw_dsp_asm.h"

#ifdef HTPW_HAS_ARMV7EM_DSP

/* Two rows by two outputs: sums a in r4, r5, b in r8, r9; weights r10, r11, of rows at r1 and r1 + r12; mask r3. */
#define HTPW_S4_PAIR2(shift)                                                                                           \
    "ldrd r6, r7, [r0], #8\n"                                                                                          \
    "and r2, r3, r10" shift "\n"                                                                                       \
    "smlad r4, r2, r6, r4\n"                                                                                           \
    "smlad r8, r2, r7, r8\n"                                                                                           \
    "and r2, r3, r11" shift "\n"                                                                                       \
    "smlad r5, r2, r6, r5\n"                                                                                           \
    "smlad r9, r2, r7, r9\n"

#define HTPW_S4_STEP2                                                                                                  \
    "ldr r11, [r1, r12]\n"                                                                                             \
    "ldr r10, [r1], #4\n" HTPW_S4_PAIR2(", lsl #12") HTPW_S4_PAIR2(", lsl #8") HTPW_S4_PAIR2(", lsl #4") HTPW_S4_PAIR2("")

/* All columns; for the last ones, see HTPW_ROWS2_ALL. */
#define HTPW_S4_ALL(step)                                                                                              \
    HTPW_TWICE(step)                                                                                                   \
    "ldr r2, " HTPW_BACK "\n"                                                                                          \
    "cmp r2, #0\n"                                                                                                     \
    "beq 3f\n"                                                                                                         \
    "sub r1, r1, r2\n" step                                                                                            \
    "3:\n"

#define HTPW_S4_HALF2                                                                                                  \
    "mov r3, #0xF000F000\n"                                                                                            \
    "movs r4, #0\n"                                                                                                    \
    "movs r5, #0\n"                                                                                                    \
    "mov r8, r4\n"                                                                                                     \
    "mov r9, r4\n" HTPW_S4_ALL(HTPW_S4_STEP2)

#define HTPW_S4_SUM(bias, v) "add " v ", " bias ", " v ", asr #11\n"

HTPW_ROUTINE(htpw_dsp_s4_2,
             "ldrd r0, r1, " HTPW_X "\n"
             "ldrd r12, lr, " HTPW_PITCH "\n" HTPW_S4_HALF2
             "strd r4, r5, " HTPW_SPARE_A "\n"
             "strd r8, r9, " HTPW_SPARE_B "\n"
             "ldrd r0, r1, " HTPW_X "\n"
             "ldrd r12, lr, " HTPW_PITCH "\n"
             "add r2, r1, r12, lsl #2\n"
             "add r1, r1, r12, lsl #1\n"
             "str r2, " HTPW_W "\n" HTPW_S4_HALF2
             "mov r6, r4\n"
             "mov r7, r5\n"
             "mov r10, r8\n"
             "mov r11, r9\n"
             "ldrd r4, r5, " HTPW_SPARE_A "\n"
             "ldrd r8, r9, " HTPW_SPARE_B "\n"
             "ldr r0, " HTPW_BIAS "\n"
             "movs r1, #0\n"
             "movs r2, #0\n"
             "movs r3, #0\n"
             "mov r12, r1\n"
             "cbz r0, 7f\n"
             "ldm r0!, {r1, r2, r3, r12}\n"
             "str r0, " HTPW_BIAS "\n"
             "lsls r1, r1, #1\n"
             "lsls r2, r2, #1\n"
             "lsls r3, r3, #1\n"
             "lsl r12, r12, #1\n"
             "7:\n" HTPW_S4_SUM("r1", "r4") HTPW_S4_SUM("r1", "r8") HTPW_S4_SUM("r2", "r5") HTPW_S4_SUM("r2", "r9")
                 HTPW_S4_SUM("r3", "r6") HTPW_S4_SUM("r3", "r10") HTPW_S4_SUM("r12", "r7") HTPW_S4_SUM("r12", "r11"))

/* One row by two outputs: sums r`a`, r`b`; x in r8-r11, weights in r2. No register is left for the mask but one of the two
 * other sums. */
#define HTPW_S4_WORD1(sum, mask)                                                                                       \
    "and r3, r" #mask ", r2, lsl #12\n"                                                                                \
    "smlad r" #sum ", r3, r8, r" #sum "\n"                                                                             \
    "and r3, r" #mask ", r2, lsl #8\n"                                                                                 \
    "smlad r" #sum ", r3, r9, r" #sum "\n"                                                                             \
    "and r3, r" #mask ", r2, lsl #4\n"                                                                                 \
    "smlad r" #sum ", r3, r10, r" #sum "\n"                                                                            \
    "and r3, r" #mask ", r2\n"                                                                                         \
    "smlad r" #sum ", r3, r11, r" #sum "\n"

#define HTPW_S4_STEP1(a, b, mask)                                                                                      \
    "ldm r0!, {r8-r11}\n"                                                                                              \
    "ldr r2, [r1, r12]\n" HTPW_S4_WORD1(b, mask)                                                                       \
    "ldr r2, [r1], #4\n" HTPW_S4_WORD1(a, mask)

#define HTPW_S4_HALF1(a, b, mask)                                                                                      \
    "mov r" #mask ", #0xF000F000\n"                                                                                    \
    "movs r" #a ", #0\n"                                                                                               \
    "movs r" #b ", #0\n" HTPW_S4_ALL(HTPW_S4_STEP1(a, b, mask))

HTPW_ROUTINE(htpw_dsp_s4_1,
             "ldrd r0, r1, " HTPW_X "\n"
             "ldrd r12, lr, " HTPW_PITCH "\n" HTPW_S4_HALF1(6, 7, 4)
             "str r7, " HTPW_SPARE_A "\n"
             "ldrd r0, r1, " HTPW_X "\n"
             "ldrd r12, lr, " HTPW_PITCH "\n"
             "add r2, r1, r12, lsl #2\n"
             "add r1, r1, r12, lsl #1\n"
             "str r2, " HTPW_W "\n" HTPW_S4_HALF1(4, 5, 7)
             "mov r10, r4\n" /* outputs 2 and 3 */
             "mov r11, r5\n"
             "mov r4, r6\n"
             "ldr r5, " HTPW_SPARE_A "\n"
             "mov r6, r10\n"
             "mov r7, r11\n"
             "ldr r0, " HTPW_BIAS "\n"
             "movs r1, #0\n"
             "movs r2, #0\n"
             "movs r3, #0\n"
             "mov r12, r1\n"
             "cbz r0, 7f\n"
             "ldm r0!, {r1, r2, r3, r12}\n"
             "str r0, " HTPW_BIAS "\n"
             "lsls r1, r1, #1\n"
             "lsls r2, r2, #1\n"
             "lsls r3, r3, #1\n"
             "lsl r12, r12, #1\n"
             "7:\n" HTPW_S4_SUM("r1", "r4") HTPW_S4_SUM("r2", "r5") HTPW_S4_SUM("r3", "r6") HTPW_S4_SUM("r12", "r7"))

#endif
