/* htpw_thumb.c - pointwise products for Cortex-M0 and M3: two rows of x by two rows of w, in assembly because GCC 12 either
 * keeps a compare and a branch for every four products or, unrolled, spills. All other kernels are the portable ones.
 */
#include "htpw_thumb.h"

#ifdef HTPW_HAS_THUMB

#include "../../kernels/htpw_requantise.h"

/* Sums of x rows 0, 1 by w rows 0, 1, in the order 00, 01, 10, 11, and row 1 of w. The assembly knows the offsets. */
struct htpw_thumb_job {
    uint32_t sum[4];
    const int8_t *w1;
};

/* job->sum += products of x[2][in_c] with w[0][in_c] and job->w1[in_c], modulo 2^32; in_c >= 1. */
void htpw_thumb_block(const int8_t *x, const int8_t *w, int32_t in_c, struct htpw_thumb_job *job);

#define HTPW_THUMB_UNUSED __attribute__((unused))

#if __ARM_ARCH >= 7

#define HTPW_COLUMN                                                                                                    \
    "ldrsb r8, [r0], #1\n ldrsb r9, [r1], #1\n ldrsb r10, [lr], #1\n ldrsb r11, [r12], #1\n"                           \
    "mla r4, r8, r9, r4\n mla r5, r8, r11, r5\n mla r6, r10, r9, r6\n mla r7, r10, r11, r7\n"

__attribute__((naked)) void htpw_thumb_block(const int8_t *x HTPW_THUMB_UNUSED, const int8_t *w HTPW_THUMB_UNUSED,
                                             int32_t in_c HTPW_THUMB_UNUSED,
                                             struct htpw_thumb_job *job HTPW_THUMB_UNUSED) {
    __asm__ volatile(".syntax unified\n"
                     "push {r3-r11, lr}\n"
                     "ldm r3, {r4-r7, r12}\n"
                     "add lr, r0, r2\n" /* row 1 of x */
                     "subs r2, r2, #4\n"
                     "blt 2f\n"
                     "1:\n" HTPW_COLUMN HTPW_COLUMN HTPW_COLUMN HTPW_COLUMN "subs r2, r2, #4\n"
                     "bge 1b\n"
                     "2: adds r2, r2, #4\n"
                     "beq 4f\n"
                     "3:\n" HTPW_COLUMN "subs r2, r2, #1\n"
                     "bne 3b\n"
                     "4: pop {r3}\n"
                     "stm r3, {r4-r7}\n"
                     "pop {r4-r11, pc}\n");
}

#else /* Armv6-M: 16-bit instructions on r0-r7, sums in the upper registers, one index that counts up to 0 */

__attribute__((naked)) void htpw_thumb_block(const int8_t *x HTPW_THUMB_UNUSED, const int8_t *w HTPW_THUMB_UNUSED,
                                             int32_t in_c HTPW_THUMB_UNUSED,
                                             struct htpw_thumb_job *job HTPW_THUMB_UNUSED) {
    __asm__ volatile(".syntax unified\n"
                     "push {r4-r7, lr}\n"
                     "mov r4, r8\n mov r5, r9\n mov r6, r10\n mov r7, r11\n"
                     "push {r3-r7}\n"
                     "ldr r4, [r3]\n ldr r5, [r3, #4]\n ldr r6, [r3, #8]\n ldr r7, [r3, #12]\n"
                     "mov r8, r4\n mov r9, r5\n mov r10, r6\n mov r11, r7\n"
                     "ldr r3, [r3, #16]\n"
                     "adds r0, r0, r2\n" /* ends of the four rows; row 1 of x ends in_c after row 0 */
                     "adds r1, r1, r2\n"
                     "adds r3, r3, r2\n"
                     "rsbs r4, r2, #0\n"
                     "adds r2, r0, r2\n"
                     "1:\n"
                     "ldrsb r5, [r0, r4]\n"
                     "ldrsb r6, [r1, r4]\n"
                     "mov r7, r5\n"
                     "muls r7, r6, r7\n"
                     "add r8, r7\n"
                     "ldrsb r7, [r2, r4]\n"
                     "muls r6, r7, r6\n"
                     "add r10, r6\n"
                     "ldrsb r6, [r3, r4]\n"
                     "muls r5, r6, r5\n"
                     "add r9, r5\n"
                     "muls r6, r7, r6\n"
                     "add r11, r6\n"
                     "adds r4, r4, #1\n"
                     "bne 1b\n"
                     "mov r4, r8\n mov r5, r9\n mov r6, r10\n mov r7, r11\n"
                     "pop {r3}\n"
                     "str r4, [r3]\n str r5, [r3, #4]\n str r6, [r3, #8]\n str r7, [r3, #12]\n"
                     "pop {r4-r7}\n"
                     "mov r8, r4\n mov r9, r5\n mov r10, r6\n mov r11, r7\n"
                     "pop {r4-r7, pc}\n");
}

#endif

/* What finishes the outputs of one channel. SPEC section 7 bounds |sum| by 2^30, so the doubled sum fits and the high word of
 * its product, rounded, is step 2 of the requantisation. Then h - (h < 0), >> (right - 1), + 1, >> 1 is the rounding shift with
 * ties away from zero, without a sum that could overflow; right = 0 is left to the portable kernel. */
struct htpw_thumb_scale {
    int32_t multiplier, right_1; /* right shift less one */
};

static inline int32_t htpw_thumb_scaled(uint32_t sum, const struct htpw_thumb_scale *s, int32_t out_offset) {
    const int64_t p = (int64_t)(int32_t)(sum << 1) * s->multiplier;
    int32_t h = (int32_t)((p + (INT64_C(1) << 31)) >> 32);
    h += h >> 31;
    return (((h >> s->right_1) + 1) >> 1) + out_offset;
}

/* Whether every channel shifts right by at least one: the usual case, and the one made fast. */
static int htpw_thumb_shifts_right(const struct htpw_requant *q, int32_t out_c) {
    for (int32_t i = 0; i < (q->per_channel ? out_c : 1); i++) {
        if (q->shift[i] > -1) {
            return 0;
        }
    }
    return 1;
}

static void htpw_thumb_conv1x1(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                               int32_t in_offset, const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch,
                               int8_t *y) {
    const int32_t paired = rows & ~1, low = q->act_min, high = q->act_max, out_offset = q->out_offset;
    (void)scratch;
    if (paired == 0 || in_c == 0 || !htpw_thumb_shifts_right(q, out_c)) {
        htpw_conv1x1_s8_ref(rows, in_c, out_c, q, in_offset, x, w, bias, y);
        return;
    }
    for (int32_t o = 0; o < out_c; o += 2) {
        const int32_t last = o + 1 < out_c ? 1 : 0; /* a single channel is made twice, to the same value */
        const int8_t *w0 = w + (size_t)o * (size_t)in_c, *w1 = w0 + (last ? in_c : 0);
        struct htpw_thumb_scale scale[2];
        uint32_t folded[2] = {0, 0};
        for (int32_t i = 0; i < in_c; i++) { /* sum (x + in_offset) * w = sum x * w + in_offset * sum w */
            folded[0] += (uint32_t)w0[i];
            folded[1] += (uint32_t)w1[i];
        }
        for (int32_t j = 0; j < 2; j++) {
            const int32_t c = o + (j & last), i = q->per_channel ? c : 0;
            folded[j] = folded[j] * (uint32_t)in_offset + htpw_bias(bias, c);
            scale[j].multiplier = q->multiplier[i];
            scale[j].right_1 = -q->shift[i] - 1;
        }
        for (int32_t r = 0; r < paired; r += 2) {
            int8_t *to = y + (size_t)r * (size_t)out_c + o;
            struct htpw_thumb_job job = {{folded[0], folded[1], folded[0], folded[1]}, w1};
            htpw_thumb_block(x + (size_t)r * (size_t)in_c, w0, in_c, &job);
            to[last] = (int8_t)htpw_clamp(htpw_thumb_scaled(job.sum[1], &scale[1], out_offset), low, high);
            to[0] = (int8_t)htpw_clamp(htpw_thumb_scaled(job.sum[0], &scale[0], out_offset), low, high);
            to[out_c + last] = (int8_t)htpw_clamp(htpw_thumb_scaled(job.sum[3], &scale[1], out_offset), low, high);
            to[out_c] = (int8_t)htpw_clamp(htpw_thumb_scaled(job.sum[2], &scale[0], out_offset), low, high);
        }
    }
    if (rows != paired) {
        htpw_conv1x1_s8_ref(1, in_c, out_c, q, in_offset, x + (size_t)paired * (size_t)in_c, w, bias,
                            y + (size_t)paired * (size_t)out_c);
    }
}

static void htpw_thumb_packed(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                              int32_t in_offset, const int8_t *x, const void *packed, const int32_t *bias,
                              void *scratch, int8_t *y) {
    htpw_thumb_conv1x1(rows, in_c, out_c, q, in_offset, x, (const int8_t *)packed, bias, scratch, y); /* row-major */
}

static void htpw_thumb_conv(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                            const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch, int8_t *y) {
    (void)scratch;
    htpw_conv_s8_ref(g, q, in_offset, x, w, bias, y);
}

static void htpw_thumb_depthwise(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                                 const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch, int8_t *y) {
    (void)scratch;
    htpw_depthwise_s8_ref(g, q, in_offset, x, w, bias, y);
}

const struct htpw_backend htpw_backend_thumb = {HTPW_BACKEND_THUMB,
                                                HTPW_IF(HTPW_WITH(CONV), htpw_thumb_conv),
                                                HTPW_IF(HTPW_WITH(DEPTHWISE), htpw_thumb_depthwise),
                                                HTPW_IF(HTPW_ANY_ROWS, htpw_thumb_conv1x1),
                                                HTPW_IF(HTPW_ANY_PACKED, htpw_thumb_packed),
                                                HTPW_IF(HTPW_WITH(ADD), htpw_add_s8_ref),
                                                HTPW_IF(HTPW_WITH(AVGPOOL), htpw_avgpool_s8_ref),
                                                HTPW_IF(HTPW_WITH(MAXPOOL), htpw_maxpool_s8_ref),
                                                HTPW_IF(HTPW_WITH(NARROW), htpw_conv1x1_s4_plain),
                                                NULL};

#else
typedef int htpw_thumb_is_off; /* ISO C wants a declaration in every file */
#endif
