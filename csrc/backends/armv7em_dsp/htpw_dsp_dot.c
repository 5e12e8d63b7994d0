/* htpw_dsp_dot.c - matrix products of the Armv7E-M backend, in assembly; htpw_dsp.h says what a job is.
 *
 * A core such as the M4 has 14 registers: eight sums, two words of x, two of weights and two pointers are all of them. The
 * rest of a job is on the stack. Compilers spill inside these loops.
 *
 * Every routine makes the doubled sums of four outputs of two rows (r4-r7 row a, r8-r11 row b) or of one row (r4-r7) and
 * jumps to the job's `finish`, which stores them or requantises them and comes back for the next four outputs.
 * Loads are LDRD and LDM where the address is a multiple of 4 (scratch and cache), LDR where it may be any.
 */
#include "htpw_dsp_asm.h"

#ifdef HTPW_HAS_ARMV7EM_DSP

/* Sums of four outputs start from the doubled biases, which the job's pointer then leaves behind; r2 is lost. */
#define HTPW_START4                                                                                                    \
    "ldr r2, " HTPW_BIAS "\n"                                                                                          \
    "cbz r2, 7f\n"                                                                                                     \
    "ldm r2!, {r4-r7}\n"                                                                                               \
    "str r2, " HTPW_BIAS "\n"                                                                                          \
    "lsls r4, r4, #1\n"                                                                                                \
    "lsls r5, r5, #1\n"                                                                                                \
    "lsls r6, r6, #1\n"                                                                                                \
    "lsls r7, r7, #1\n"                                                                                                \
    "b 8f\n"                                                                                                           \
    "7:\n"                                                                                                             \
    "movs r4, #0\n"                                                                                                    \
    "movs r5, #0\n"                                                                                                    \
    "movs r6, #0\n"                                                                                                    \
    "movs r7, #0\n"                                                                                                    \
    "8:\n"

#define HTPW_START8                                                                                                    \
    HTPW_START4                                                                                                        \
    "mov r8, r4\n"                                                                                                     \
    "mov r9, r5\n"                                                                                                     \
    "mov r10, r6\n"                                                                                                    \
    "mov r11, r7\n"

/* Two columns of two rows of x in r12, lr by the weights of two outputs in r2, r3. */
#define HTPW_FOUR(a0, a1, b0, b1)                                                                                      \
    "smlad r" #a0 ", r2, r12, r" #a0 "\n"                                                                              \
    "smlad r" #b0 ", r2, lr, r" #b0 "\n"                                                                               \
    "smlad r" #a1 ", r3, r12, r" #a1 "\n"                                                                              \
    "smlad r" #b1 ", r3, lr, r" #b1 "\n"

#define HTPW_WIDE2                                                                                                     \
    "ldrd r12, lr, [r0], #8\n"                                                                                         \
    "ldrd r2, r3, [r1], #8\n" HTPW_FOUR(4, 5, 8, 9)                                                                    \
    "ldrd r2, r3, [r1], #8\n" HTPW_FOUR(6, 7, 10, 11)

/* r0 runs to the end of the whole groups of four steps, then to the end of x. */
HTPW_ROUTINE(htpw_dsp_wide2, HTPW_START8
             "ldrd r0, r1, " HTPW_X "\n"
             "ldr r2, " HTPW_X_MIDDLE "\n"
             "cmp r0, r2\n"
             "beq 2f\n"
             "1:\n" HTPW_WIDE2 HTPW_WIDE2 HTPW_WIDE2 HTPW_WIDE2
             "ldr r2, " HTPW_X_MIDDLE "\n"
             "cmp r0, r2\n"
             "bne 1b\n"
             "2:\n"
             "ldr r2, " HTPW_X_END "\n"
             "cmp r0, r2\n"
             "beq 4f\n"
             "3:\n" HTPW_WIDE2
             "ldr r2, " HTPW_X_END "\n"
             "cmp r0, r2\n"
             "bne 3b\n"
             "4:\n"
             "str r1, " HTPW_W "\n")

/* Four columns: each word of weights is loaded twice, for its even and for its odd columns, because no register is left
 * to keep it in. */
#define HTPW_PACKED2                                                                                                   \
    "ldrd r12, lr, [r0], #8\n"                                                                                         \
    "ldrd r2, r3, [r1]\n"                                                                                              \
    "sxtb16 r2, r2\n"                                                                                                  \
    "sxtb16 r3, r3\n" HTPW_FOUR(4, 5, 8, 9)                                                                            \
    "ldrd r2, r3, [r1, #8]\n"                                                                                          \
    "sxtb16 r2, r2\n"                                                                                                  \
    "sxtb16 r3, r3\n" HTPW_FOUR(6, 7, 10, 11)                                                                          \
    "ldrd r12, lr, [r0], #8\n"                                                                                         \
    "ldrd r2, r3, [r1, #8]\n"                                                                                          \
    "sxtb16 r2, r2, ror #8\n"                                                                                          \
    "sxtb16 r3, r3, ror #8\n" HTPW_FOUR(6, 7, 10, 11)                                                                  \
    "ldrd r2, r3, [r1], #16\n"                                                                                         \
    "sxtb16 r2, r2, ror #8\n"                                                                                          \
    "sxtb16 r3, r3, ror #8\n" HTPW_FOUR(4, 5, 8, 9)

HTPW_ROUTINE(htpw_dsp_packed2, HTPW_START8
             "ldrd r0, r1, " HTPW_X "\n"
             "ldr r2, " HTPW_X_MIDDLE "\n"
             "cmp r0, r2\n"
             "beq 2f\n"
             "1:\n" HTPW_PACKED2 HTPW_PACKED2
             "ldr r2, " HTPW_X_MIDDLE "\n"
             "cmp r0, r2\n"
             "bne 1b\n"
             "2:\n"
             "ldr r2, " HTPW_X_END "\n"
             "cmp r0, r2\n"
             "beq 4f\n" HTPW_PACKED2
             "4:\n"
             "str r1, " HTPW_W "\n")

/* Row-major weights: two outputs at a time, r1 and r12 their rows; sums a0 a1 b0 b1, x in the list of four x0 .. x3. */
#define HTPW_ROWS2(a0, a1, b0, b1, x0, x1, x2, x3)                                                                     \
    "ldr r2, [r1], #4\n"                                                                                               \
    "ldm r0!, {r" #x0 ", r" #x1 ", r" #x2 ", r" #x3 "}\n"                                                              \
    "sxtb16 r3, r2\n"                                                                                                  \
    "smlad r" #a0 ", r3, r" #x0 ", r" #a0 "\n"                                                                         \
    "smlad r" #b0 ", r3, r" #x1 ", r" #b0 "\n"                                                                         \
    "sxtb16 r3, r2, ror #8\n"                                                                                          \
    "ldr r2, [r12], #4\n"                                                                                              \
    "smlad r" #a0 ", r3, r" #x2 ", r" #a0 "\n"                                                                         \
    "smlad r" #b0 ", r3, r" #x3 ", r" #b0 "\n"                                                                         \
    "sxtb16 r3, r2\n"                                                                                                  \
    "smlad r" #a1 ", r3, r" #x0 ", r" #a1 "\n"                                                                         \
    "smlad r" #b1 ", r3, r" #x1 ", r" #b1 "\n"                                                                         \
    "sxtb16 r3, r2, ror #8\n"                                                                                          \
    "smlad r" #a1 ", r3, r" #x2 ", r" #a1 "\n"                                                                         \
    "smlad r" #b1 ", r3, r" #x3 ", r" #b1 "\n"

/* The last columns of rows that are no multiple of four long: `back` bytes of weights are loaded once more and meet zeros. */
#define HTPW_ROWS2_ALL(step)                                                                                           \
    HTPW_TWICE(step)                                                                                                   \
    "ldr r2, " HTPW_BACK "\n"                                                                                          \
    "cbz r2, 3f\n"                                                                                                     \
    "sub r1, r1, r2\n"                                                                                                 \
    "sub r12, r12, r2\n" step                                                                                          \
    "3:\n"

HTPW_ROUTINE(htpw_dsp_rows2, HTPW_START8
             "strd r6, r7, " HTPW_SPARE_B "\n"
             "ldrd r0, r1, " HTPW_X "\n"
             "ldrd r2, lr, " HTPW_PITCH "\n"
             "add r12, r1, r2\n" HTPW_ROWS2_ALL(HTPW_ROWS2(4, 5, 8, 9, 6, 7, 10, 11))
             "strd r4, r5, " HTPW_SPARE_A "\n"
             "ldrd r6, r7, " HTPW_SPARE_B "\n"
             "strd r8, r9, " HTPW_SPARE_B "\n"
             "mov r10, r6\n"
             "mov r11, r7\n"
             "ldrd r0, r1, " HTPW_X "\n"
             "ldrd r2, lr, " HTPW_PITCH "\n"
             "add r3, r1, r2, lsl #2\n"
             "add r1, r1, r2, lsl #1\n"
             "add r12, r1, r2\n"
             "str r3, " HTPW_W "\n" HTPW_ROWS2_ALL(HTPW_ROWS2(6, 7, 10, 11, 4, 5, 8, 9))
             "ldrd r4, r5, " HTPW_SPARE_A "\n"
             "ldrd r8, r9, " HTPW_SPARE_B "\n")

/* Four weights in w, which is lost, by four x in r8, r9; t is free. */
#define HTPW_WORD(sum, w, t)                                                                                           \
    "sxtb16 r" #t ", r" #w "\n"                                                                                        \
    "smlad r" #sum ", r" #t ", r8, r" #sum "\n"                                                                        \
    "sxtb16 r" #w ", r" #w ", ror #8\n"                                                                                \
    "smlad r" #sum ", r" #w ", r9, r" #sum "\n"

#define HTPW_PACKED1                                                                                                   \
    "ldrd r8, r9, [r0], #8\n"                                                                                          \
    "ldm r1!, {r2, r3, r10, r11}\n" HTPW_WORD(4, 2, 12) HTPW_WORD(5, 3, 12) HTPW_WORD(6, 10, 12) HTPW_WORD(7, 11, 12)

HTPW_ROUTINE(htpw_dsp_packed1, HTPW_START4
             "ldrd r0, r1, " HTPW_X "\n"
             "ldr lr, " HTPW_STEPS "\n" HTPW_TWICE(HTPW_PACKED1)
             "str r1, " HTPW_W "\n")

/* Two columns of x in r`x`. */
#define HTPW_WIDE1(x)                                                                                                  \
    "ldm r1!, {r2, r3, r10, r11}\n"                                                                                    \
    "smlad r4, r2, r" #x ", r4\n"                                                                                      \
    "smlad r5, r3, r" #x ", r5\n"                                                                                      \
    "smlad r6, r10, r" #x ", r6\n"                                                                                     \
    "smlad r7, r11, r" #x ", r7\n"

/* Steps are columns by two: a single one first, then by four columns. */
HTPW_ROUTINE(htpw_dsp_wide1, HTPW_START4
             "ldrd r0, r1, " HTPW_X "\n"
             "ldr lr, " HTPW_STEPS "\n"
             "lsrs lr, lr, #1\n" /* carry: an odd number of steps */
             "bcc 3f\n"
             "ldr r8, [r0], #4\n" HTPW_WIDE1(8)
             "cmp lr, #0\n"
             "beq 4f\n"
             "3:\n" HTPW_TWICE("ldrd r8, r9, [r0], #8\n" HTPW_WIDE1(8) HTPW_WIDE1(9))
             "4:\n"
             "str r1, " HTPW_W "\n")

/* The ends of a group of four outputs. Requantisation is htpw_dsp_quick. */

HTPW_NAKED(htpw_dsp_store2(void), "ldr r0, " HTPW_SUM "\n"
                                  "stm r0, {r4-r11}\n" HTPW_LEAVE)

HTPW_NAKED(htpw_dsp_store1(void), "ldr r0, " HTPW_SUM "\n"
                                  "stm r0, {r4-r7}\n" HTPW_LEAVE)

/* One output: sum v, multiplier r2, rounding c, R in r3; c + (v >> 31) goes to t, which may be c. */
#define HTPW_QUICK(v, c, t)                                                                                            \
    "add " t ", " c ", " v ", asr #31\n"                                                                               \
    "smmlar " v ", " v ", r2, " t "\n"                                                                                 \
    "asr " v ", " v ", r3\n"                                                                                           \
    "ssat " v ", #8, " v "\n"

/* Next channel's multiplier, rounding and R into r2, r1, r3: rounding = (2 * zp_out + 1) << (R - 1), and R - 1 = ~shift. */
#define HTPW_CHANNEL                                                                                                   \
    "ldr r3, [r0, r12]\n"                                                                                              \
    "ldr r2, [r0], #4\n"                                                                                               \
    "ldr lr, " HTPW_SCALE_2 "\n"                                                                                       \
    "mvn r1, r3\n"                                                                                                     \
    "lsl r1, lr, r1\n"                                                                                                 \
    "rsb r3, r3, #0\n"

#define HTPW_CHANNEL2(a, b) HTPW_CHANNEL HTPW_QUICK(a, "r1", "lr") HTPW_QUICK(b, "r1", "r1")

#define HTPW_PACK(a, b, c, d)                                                                                          \
    "bfi " a ", " b ", #8, #8\n"                                                                                       \
    "bfi " a ", " c ", #16, #8\n"                                                                                      \
    "bfi " a ", " d ", #24, #8\n"

#define HTPW_LOWEST(v)                                                                                                 \
    "ssub8 r1, " v ", r2\n"                                                                                            \
    "sel " v ", " v ", r2\n"

#define HTPW_HIGHEST(v)                                                                                                \
    "ssub8 r1, " v ", r2\n"                                                                                            \
    "sel " v ", r2, " v "\n"

/* Stores one group and goes on with the next until y is at its end. */
#define HTPW_WRITE(lowest, highest, second)                                                                            \
    "ldr r3, " HTPW_CLAMPS "\n"                                                                                        \
    "cbz r3, 5f\n"                                                                                                     \
    "ldr r2, " HTPW_LOW "\n" lowest                                                                                    \
    "cmp r3, #1\n"                                                                                                     \
    "beq 5f\n"                                                                                                         \
    "ldr r2, " HTPW_HIGH "\n" highest                                                                                  \
    "5:\n"                                                                                                             \
    "ldrd r0, r3, " HTPW_Y "\n" second                                                                                 \
    "str r4, [r0], #4\n"                                                                                               \
    "str r0, " HTPW_Y "\n"                                                                                             \
    "cmp r0, r3\n"                                                                                                     \
    "it ne\n"                                                                                                          \
    "ldrne pc, " HTPW_AGAIN "\n" HTPW_LEAVE

#define HTPW_WRITE1 HTPW_PACK("r4", "r5", "r6", "r7") HTPW_WRITE(HTPW_LOWEST("r4"), HTPW_HIGHEST("r4"), "")
#define HTPW_WRITE2                                                                                                    \
    HTPW_PACK("r4", "r5", "r6", "r7")                                                                                  \
    HTPW_PACK("r8", "r9", "r10", "r11")                                                                                \
    HTPW_WRITE(HTPW_LOWEST("r4") HTPW_LOWEST("r8"), HTPW_HIGHEST("r4") HTPW_HIGHEST("r8"),                             \
               "ldr r2, " HTPW_Y_PITCH "\n"                                                                            \
               "str r8, [r0, r2]\n")

HTPW_NAKED(htpw_dsp_channels2(void), "ldrd r0, r12, " HTPW_SCALE "\n" HTPW_CHANNEL2("r4", "r8")
                                         HTPW_CHANNEL2("r5", "r9") HTPW_CHANNEL2("r6", "r10")
                                             HTPW_CHANNEL2("r7", "r11") "str r0, " HTPW_SCALE "\n" HTPW_WRITE2)

/* With one row there are registers for four multipliers. */
#define HTPW_CHANNEL1(v, multiplier)                                                                                   \
    "ldr r3, [r12], #4\n"                                                                                              \
    "mvn r1, r3\n"                                                                                                     \
    "lsl r1, lr, r1\n"                                                                                                 \
    "rsb r3, r3, #0\n"                                                                                                 \
    "add r1, r1, " v ", asr #31\n"                                                                                     \
    "smmlar " v ", " v ", " multiplier ", r1\n"                                                                        \
    "asr " v ", " v ", r3\n"                                                                                           \
    "ssat " v ", #8, " v "\n"

HTPW_NAKED(htpw_dsp_channels1(void), "ldrd r0, r12, " HTPW_SCALE "\n"
                                     "ldr lr, " HTPW_SCALE_2 "\n"
                                     "add r12, r12, r0\n"
                                     "ldm r0!, {r8-r11}\n"
                                     "str r0, " HTPW_SCALE "\n" HTPW_CHANNEL1("r4", "r8") HTPW_CHANNEL1("r5", "r9")
                                         HTPW_CHANNEL1("r6", "r10") HTPW_CHANNEL1("r7", "r11") HTPW_WRITE1)

#define HTPW_TENSOR4(a, b, c, d)                                                                                       \
    HTPW_QUICK(a, "r1", "lr") HTPW_QUICK(b, "r1", "lr") HTPW_QUICK(c, "r1", "lr") HTPW_QUICK(d, "r1", "lr")

HTPW_NAKED(htpw_dsp_tensor2(void), "ldrd r2, r1, " HTPW_SCALE "\n"
                                   "ldr r3, " HTPW_SCALE_2 "\n" HTPW_TENSOR4("r4", "r5", "r6", "r7")
                                       HTPW_TENSOR4("r8", "r9", "r10", "r11") HTPW_WRITE2)

HTPW_NAKED(htpw_dsp_tensor1(void), "ldrd r2, r1, " HTPW_SCALE "\n"
                                   "ldr r3, " HTPW_SCALE_2 "\n" HTPW_TENSOR4("r4", "r5", "r6", "r7") HTPW_WRITE1)

/* Four columns by four rows of row-major weights; x at r0 + at. Every instruction has four bytes, 21 of them 84. */
#define HTPW_ROWS1(at)                                                                                                 \
    "ldrd r8, r9, [r0, #" #at "]\n"                                                                                    \
    "ldr.w r10, [r1, r2]\n"                                                                                            \
    "ldr.w r3, [r1, r2, lsl #1]\n" HTPW_WORD(5, 10, 11) HTPW_WORD(6, 3, 11)                                            \
    "ldr.w r10, [r1, r12]\n"                                                                                           \
    "ldr.w r3, [r1], #4\n" HTPW_WORD(7, 10, 11) HTPW_WORD(4, 3, 11)

/* One output: sum v, multiplier r8, rounding r9, R in r10. */
#define HTPW_ROWS1_OUT(v)                                                                                              \
    "add r11, r9, " v ", asr #31\n"                                                                                    \
    "smmlar " v ", " v ", r8, r11\n"                                                                                   \
    "asr " v ", " v ", r10\n"                                                                                          \
    "ssat " v ", #8, " v "\n"

#define HTPW_ROWS1_TENSOR                                                                                              \
    "add r1, r1, r12\n" /* to the next four rows */                                                                    \
    "ldrd r8, r9, " HTPW_SCALE "\n"                                                                                    \
    "ldr r10, " HTPW_SCALE_2 "\n" HTPW_ROWS1_OUT("r4") HTPW_ROWS1_OUT("r5") HTPW_ROWS1_OUT("r6") HTPW_ROWS1_OUT("r7")  \
        HTPW_PACK("r4", "r5", "r6", "r7")

/* Where a group goes on, addresses that are made once per call: into the unrolled steps; behind them; from there, when the
 * whole steps are done; when all columns are. */
#define HTPW_ENTRY "[sp, #84]"
#define HTPW_NEXT "[sp, #88]"
#define HTPW_WHOLE "[sp, #92]"
#define HTPW_DONE "[sp, #96]"

/* r3: an address of code, if `unless` does not jump to 1. */
#define HTPW_CHOOSE(label, unless) unless "adr.w r3, " label "\norr r3, r3, #1\n"

/* r1: steps. They are counted in eights, of which the first is the incomplete one. */
#define HTPW_ROWS1_SETUP                                                                                               \
    "ldr r0, " HTPW_X "\n"                                                                                             \
    "ldr r1, " HTPW_STEPS "\n"                                                                                         \
    "subs r2, r1, #1\n"                                                                                                \
    "and r2, r2, #7\n"                                                                                                 \
    "add r2, r2, #1\n"                                                                                                 \
    "sub r0, r0, #64\n"                                                                                                \
    "add r3, r0, r2, lsl #3\n"                                                                                         \
    "str r3, " HTPW_X "\n"                                                                                             \
    "add r3, r0, r1, lsl #3\n"                                                                                         \
    "str r3, " HTPW_X_END "\n"                                                                                         \
    "adr.w r3, 22f\n"                                                                                                  \
    "movs r0, #84\n"                                                                                                   \
    "mls r3, r0, r2, r3\n"                                                                                             \
    "orr r3, r3, #1\n" /* Thumb */                                                                                     \
    "str r3, " HTPW_ENTRY "\n"                                                                                         \
    "ldr r2, " HTPW_FINISH "\n" HTPW_CHOOSE("27f", "") HTPW_CHOOSE("28f", "cbnz r2, 1f\n")                             \
        HTPW_CHOOSE("29f", "cmp r1, #8\nbls 1f\n") "1:\n"                                                              \
    "ldr r0, " HTPW_CLAMPS "\n"                                                                                        \
    "cmp r2, #0\n" HTPW_CHOOSE("30f", "bne 1f\ncbz r0, 1f\n") "1:\n"                                              \
    "str r3, " HTPW_DONE "\n"                                                                                          \
    "ldr r2, " HTPW_BACK "\n" HTPW_CHOOSE("26f", "cbz r2, 1f\n") "1:\n"                                                \
    "str r3, " HTPW_WHOLE "\n"                                                                                         \
    "cmp r1, #8\n" HTPW_CHOOSE("23f", "bls 1f\n") "1:\n"                                                               \
    "str r3, " HTPW_NEXT "\n"

/* The last eight or fewer steps of a row are entered with a jump: r0 lies as far in front of x as steps are left out, and
 * moves on by eight steps at a time. Layers of generators have few columns and thousands of outputs, so what is done once per
 * group counts: with one scale for all outputs (job->finish is NULL) a group is requantised here, and registers are kept:
 * r0 x, r1 weights, r2 and r12 one and three rows of them, lr y. */
HTPW_ROUTINE_AFTER(HTPW_ROWS1_SETUP, htpw_dsp_rows1,
                   "ldrd r0, r1, " HTPW_X "\n"
                   "ldr r2, " HTPW_PITCH "\n"
                   "ldr lr, " HTPW_Y "\n"
                   "add r12, r2, r2, lsl #1\n"
                   "20:\n"
                   "ldr r3, " HTPW_BIAS "\n"
                   "cbz r3, 21f\n"
                   "ldm r3!, {r4-r7}\n"
                   "str r3, " HTPW_BIAS "\n"
                   "lsls r4, r4, #1\n"
                   "lsls r5, r5, #1\n"
                   "lsls r6, r6, #1\n"
                   "lsls r7, r7, #1\n"
                   "ldr pc, " HTPW_ENTRY "\n"
                   "21:\n"
                   "movs r4, #0\n"
                   "movs r5, #0\n"
                   "movs r6, #0\n"
                   "movs r7, #0\n"
                   "ldr pc, " HTPW_ENTRY "\n"
                   "25:\n" HTPW_ROWS1(0) HTPW_ROWS1(8) HTPW_ROWS1(16) HTPW_ROWS1(24) HTPW_ROWS1(32) HTPW_ROWS1(40)
                       HTPW_ROWS1(48) HTPW_ROWS1(56)
                   "22:\n"
                   "ldr pc, " HTPW_NEXT "\n"
                   "23:\n" /* more than eight steps */
                   "ldr r3, " HTPW_X_END "\n"
                   "cmp r0, r3\n"
                   "add r0, r0, #64\n"
                   "bne 25b\n"
                   "sub r0, r0, #64\n"
                   "ldr pc, " HTPW_WHOLE "\n"
                   "26:\n" /* the last columns, as in HTPW_ROWS2_ALL */
                   "ldr r3, " HTPW_BACK "\n"
                   "sub r1, r1, r3\n" HTPW_ROWS1(64)
                   "ldr pc, " HTPW_DONE "\n"
                   "29:\n"
                   "ldr r0, " HTPW_X "\n"
                   "28:\n" HTPW_ROWS1_TENSOR
                   "31:\n"
                   "str r4, [lr], #4\n"
                   "ldr r3, " HTPW_Y_END "\n"
                   "cmp lr, r3\n"
                   "bne 20b\n" HTPW_LEAVE
                   "30:\n"
                   "ldr r0, " HTPW_X "\n" HTPW_ROWS1_TENSOR
                   "ldrd r8, r9, " HTPW_LOW "\n"
                   "ssub8 r10, r4, r8\n"
                   "sel r4, r4, r8\n"
                   "ssub8 r10, r4, r9\n"
                   "sel r4, r9, r4\n"
                   "b 31b\n"
                   "27:\n"
                   "add r1, r1, r12\n"
                   "str r1, " HTPW_W "\n")

/* Depthwise. A tap of four channels: x to halves, offset added, times weights, whose halves pick their channels. Every
 * instruction has four bytes, ten of them 40: the last `taps` of the unrolled ones are entered with a jump. Three loads in a
 * row take one cycle less than one and an LDRD. */
#define HTPW_TAP                                                                                                       \
    "ldr.w r8, [r1]\n"                                                                                                 \
    "ldr.w r10, [r12], #4\n"                                                                                           \
    "ldr.w r11, [r12], #4\n"                                                                                           \
    "add.w r1, r1, r2\n"                                                                                               \
    "sxtab16 r9, r3, r8\n"                                                                                             \
    "sxtab16 r8, r3, r8, ror #8\n"                                                                                     \
    "smlabb r4, r9, r10, r4\n"                                                                                         \
    "smlatt r6, r9, r10, r6\n"                                                                                         \
    "smlabb r5, r8, r11, r5\n"                                                                                         \
    "smlatt r7, r8, r11, r7\n"

#define HTPW_TAPS4 HTPW_TAP HTPW_TAP HTPW_TAP HTPW_TAP

#define HTPW_LINE_OUT(v)                                                                                               \
    "ldm r12!, {r8-r10}\n"                                                                                             \
    "add r9, r9, " v ", asr #31\n"                                                                                     \
    "smmlar " v ", " v ", r8, r9\n"                                                                                    \
    "asr " v ", " v ", r10\n"                                                                                          \
    "ssat " v ", #8, " v "\n"

typedef char htpw_dsp_line_has_its_offsets[offsetof(struct htpw_dsp_line, skipped) == 20 &&
                                                   offsetof(struct htpw_dsp_line, clamps) == 32 &&
                                                   offsetof(struct htpw_dsp_line, taps) == 44 &&
                                                   offsetof(struct htpw_dsp_line, bias2) == 48 &&
                                                   offsetof(struct htpw_dsp_line, out) == 64 && HTPW_DSP_LINE_TAPS == 12
                                               ? 1
                                               : -1];

HTPW_NAKED(htpw_dsp_line(struct htpw_dsp_line *line __attribute__((unused))),
           "push {r4-r11, lr}\n"
           "ldr r1, [r0, #20]\n"
           "mov r2, #40\n"
           "adr.w r3, 2f\n"
           "mla r1, r1, r2, r3\n"
           "orr r1, r1, #1\n" /* Thumb */
           "str r1, [r0, #20]\n"
           "ldrd r2, r3, [r0, #24]\n" /* step, offset */
           "ldr lr, [r0, #8]\n"       /* y */
           "1:\n"
           "ldrd r1, r8, [r0]\n"
           "add r12, r0, #48\n"
           "add r8, r8, r1\n"
           "ldm r12, {r4-r7}\n"
           "str r8, [r0]\n"
           "ldr r12, [r0, #44]\n"
           "ldr pc, [r0, #20]\n"
           "2:\n" HTPW_TAPS4 HTPW_TAPS4 HTPW_TAPS4
           "add r12, r0, #64\n" HTPW_LINE_OUT("r4") HTPW_LINE_OUT("r5") HTPW_LINE_OUT("r6") HTPW_LINE_OUT("r7")
               HTPW_PACK("r4", "r5", "r6", "r7")
           "ldr r1, [r0, #32]\n"
           "cbz r1, 3f\n"
           "ldrd r8, r9, [r0, #36]\n"
           "ssub8 r1, r4, r8\n"
           "sel r4, r4, r8\n"
           "ssub8 r1, r4, r9\n"
           "sel r4, r9, r4\n"
           "3:\n"
           "ldrd r8, r9, [r0, #12]\n" /* pitch and end of y */
           "str r4, [lr]\n"
           "add lr, lr, r8\n"
           "cmp lr, r9\n"
           "bne 1b\n"
           "pop {r4-r11, pc}\n")

#endif
