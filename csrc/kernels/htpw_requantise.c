/* htpw_requantise.c - the exported form of the shared rounding rule, and what small builds have once. */
#define HTPW_REQUANTISE_HERE 1
#include "htpw_requantise.h"
#include "htpw_window.h"

int32_t htpw_requantise(int32_t v, int32_t multiplier, int32_t shift) {
    return htpw_requantise_inline(v, multiplier, shift);
}

#if HTPW_SMALL

void htpw_small_dot(int32_t n, int32_t offset, const int8_t *x, const int8_t *w, size_t pitch,
                    uint32_t sum[HTPW_LANES]) {
    uint32_t s0 = sum[0], s1 = sum[1], s2 = sum[2], s3 = sum[3];
#ifdef HTPW_SMALL_DSP /* four columns at a time */
    const uint32_t offset2 = (uint16_t)offset * UINT32_C(0x10001);
    const int8_t *const end = x + (n & ~3);
    if (x != end) { /* in assembly, because compilers spill */
        uint32_t even, odd, a, b;
        __asm__("1:\n"
                "ldr %[b], [%[x]], #4\n"
                "sxtab16 %[even], %[offset], %[b]\n"
                "sxtab16 %[odd], %[offset], %[b], ror #8\n"
                "ldr %[b], [%[w], %[pitch]]\n"
                "sxtb16 %[a], %[b]\n"
                "sxtb16 %[b], %[b], ror #8\n"
                "smlad %[s1], %[a], %[even], %[s1]\n"
                "smlad %[s1], %[b], %[odd], %[s1]\n"
                "add %[b], %[w], %[pitch], lsl #1\n"
                "ldr %[b], [%[b], %[pitch]]\n"
                "sxtb16 %[a], %[b]\n"
                "sxtb16 %[b], %[b], ror #8\n"
                "smlad %[s3], %[a], %[even], %[s3]\n"
                "smlad %[s3], %[b], %[odd], %[s3]\n"
                "ldr %[b], [%[w], %[pitch], lsl #1]\n"
                "sxtb16 %[a], %[b]\n"
                "sxtb16 %[b], %[b], ror #8\n"
                "smlad %[s2], %[a], %[even], %[s2]\n"
                "smlad %[s2], %[b], %[odd], %[s2]\n"
                "ldr %[b], [%[w]], #4\n"
                "sxtb16 %[a], %[b]\n"
                "sxtb16 %[b], %[b], ror #8\n"
                "smlad %[s0], %[a], %[even], %[s0]\n"
                "smlad %[s0], %[b], %[odd], %[s0]\n"
                "cmp %[x], %[end]\n"
                "bne 1b\n"
                : [x] "+&r"(x), [w] "+&r"(w), [s0] "+&r"(s0), [s1] "+&r"(s1), [s2] "+&r"(s2), [s3] "+&r"(s3),
                  [even] "=&r"(even), [odd] "=&r"(odd), [a] "=&r"(a), [b] "=&r"(b)
                : [offset] "r"(offset2), [pitch] "r"(pitch), [end] "r"(end)
                : "cc", "memory");
    }
    n &= 3;
#endif
    for (; n > 0; n--, w++) {
        const int32_t v = *x++ + offset;
        s0 += (uint32_t)(v * w[0]);
        s1 += (uint32_t)(v * w[pitch]);
        s2 += (uint32_t)(v * w[2 * pitch]);
        s3 += (uint32_t)(v * w[3 * pitch]);
    }
    sum[0] = s0;
    sum[1] = s1;
    sum[2] = s2;
    sum[3] = s3;
}

#ifdef HTPW_SMALL_DSP
void htpw_small_taps(int32_t n, uint32_t offset2, const int8_t *x, size_t x_step, const int8_t *w, size_t w_step,
                     uint32_t sum[HTPW_LANES]) {
    uint32_t s0 = sum[0], s1 = sum[1], s2 = sum[2], s3 = sum[3];
    for (; n > 0; n--) {
        uint32_t a = htpw_small_load(x), b = htpw_small_load(w);
        const uint32_t odd = htpw_small_odd(offset2, a), odd_w = htpw_small_odd0(b);
        s1 = htpw_small_smlabb(odd, odd_w, s1);
        s3 = htpw_small_smlatt(odd, odd_w, s3);
        a = htpw_small_even(offset2, a);
        b = htpw_small_even0(b);
        s0 = htpw_small_smlabb(a, b, s0);
        s2 = htpw_small_smlatt(a, b, s2);
        x += x_step;
        w += w_step;
    }
    sum[0] = s0;
    sum[1] = s1;
    sum[2] = s2;
    sum[3] = s3;
}
#endif

void htpw_small_finish(const struct htpw_requant *q, int32_t c, int32_t count, const int32_t *bias, const uint32_t *sum,
                       int8_t *y) {
    const int32_t out_offset = q->out_offset, act_min = q->act_min,
                  act_max = q->act_max; /* y may be anything's, for all that is known */
    const int32_t step = q->per_channel ? 1 : 0, *multiplier = q->multiplier + c * step, *shifts = q->shift + c * step;
    const int8_t *const end = y + count;
    bias = bias != NULL ? bias + c : NULL;
    do {
        uint32_t v = *sum++;
        const int32_t shift = *shifts, m = *multiplier;
        shifts += step;
        multiplier += step;
        if (bias != NULL) {
            v += (uint32_t)*bias++;
        }
#ifdef HTPW_SMALL_DSP /* doubled: |v| * 2^left < 2^30 (SPEC section 7) */
        v <<= 1;
        int32_t h = htpw_small_high((int32_t)(shift > 0 ? v << shift : v), m);
#else
        int32_t h = htpw_high_multiply((int32_t)(shift > 0 ? v << shift : v), m);
#endif
        if (shift < 0) { /* as in htpw_finish_s8 */
            h = (((h + (h >> 31)) >> ~shift) + 1) >> 1;
        }
        *y++ = (int8_t)htpw_clamp(h + out_offset, act_min, act_max);
    } while (y != end);
}

#endif
