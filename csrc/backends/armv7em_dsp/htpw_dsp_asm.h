/* htpw_dsp_asm.h - what the assembly of matrix products shares: a job on the stack, and loops over its columns. */
#ifndef HTPW_DSP_ASM_H
#define HTPW_DSP_ASM_H

#include "htpw_dsp.h"

#ifdef HTPW_HAS_ARMV7EM_DSP

/* Offsets of struct htpw_dsp_job, which is copied to sp, and what lies behind it. */
#define HTPW_X "[sp]" /* and w */
#define HTPW_W "[sp, #4]"
#define HTPW_X_MIDDLE "[sp, #8]"
#define HTPW_X_END "[sp, #12]"
#define HTPW_BIAS "[sp, #16]"
#define HTPW_SCALE "[sp, #20]" /* and 24 */
#define HTPW_SCALE_2 "[sp, #28]"
#define HTPW_Y "[sp, #32]" /* and its end */
#define HTPW_Y_END "[sp, #36]"
#define HTPW_Y_PITCH "[sp, #40]"
#define HTPW_FINISH "[sp, #44]"
#define HTPW_CLAMPS "[sp, #48]"
#define HTPW_LOW "[sp, #52]" /* and high */
#define HTPW_HIGH "[sp, #56]"
#define HTPW_PITCH "[sp, #60]" /* and steps */
#define HTPW_STEPS "[sp, #64]"
#define HTPW_BACK "[sp, #68]"
#define HTPW_SUM "[sp, #72]"
#define HTPW_AGAIN "[sp, #80]"
#define HTPW_SPARE_A "[sp, #88]"
#define HTPW_SPARE_B "[sp, #96]"

typedef char htpw_dsp_job_is_80_bytes[sizeof(struct htpw_dsp_job) == 80 ? 1 : -1];

/* Aligned, because ADR counts from a multiple of 4. */
#define HTPW_NAKED(declaration, code)                                                                                  \
    __attribute__((naked, noinline, aligned(4))) void declaration { __asm__ volatile(".syntax unified\n" code); }

/* The job goes to the stack; `setup` runs once; label 9 is where each group of four outputs begins. */
#define HTPW_ROUTINE(name, code) HTPW_ROUTINE_AFTER("", name, code)
#define HTPW_ROUTINE_AFTER(setup, name, code)                                                                          \
    HTPW_NAKED(name(const struct htpw_dsp_job *job __attribute__((unused))),                                           \
               "push {r4-r11, lr}\n"                                                                                   \
               "sub sp, sp, #108\n" /* an odd number of words, as were pushed: sp stays a multiple of 8 */             \
               "mov r12, sp\n"                                                                                         \
               "ldm r0!, {r2-r11}\n"                                                                                   \
               "stm r12!, {r2-r11}\n"                                                                                  \
               "ldm r0, {r2-r11}\n"                                                                                    \
               "stm r12, {r2-r11}\n"                                                                                   \
               "adr.w r0, 9f\n"                                                                                        \
               "orr r0, r0, #1\n" /* Thumb */                                                                          \
               "str r0, " HTPW_AGAIN "\n" setup                                                                        \
               "9:\n" code "ldr pc, " HTPW_FINISH "\n")

#define HTPW_LEAVE                                                                                                     \
    "add sp, sp, #108\n"                                                                                               \
    "pop {r4-r11, pc}\n"

/* Runs `step` lr >= 1 times: an odd one first, then two at a time. */
#if HTPW_WITH(UNROLL)
#define HTPW_TWICE(step)                                                                                               \
    "lsrs lr, lr, #1\n" /* carry: an odd number of steps */                                                            \
    "bcc 1f\n" step                                                                                                    \
    "cmp lr, #0\n"                                                                                                     \
    "beq 2f\n"                                                                                                         \
    "1:\n" step step                                                                                                   \
    "subs lr, lr, #1\n"                                                                                                \
    "bne 1b\n"                                                                                                         \
    "2:\n"
#else
#define HTPW_TWICE(step)                                                                                               \
    "1:\n" step                                                                                                        \
    "subs lr, lr, #1\n"                                                                                                \
    "bne 1b\n"
#endif

#endif
#endif
