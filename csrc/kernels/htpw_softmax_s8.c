/* htpw_softmax_s8.c - softmax of rows, fixed point: 5 integer bits in, scale 1/256 and zero point -128 out. */
#include "htpw_requantise.h"

#define HTPW_SOFTMAX_SUM_SHIFT 12 /* exponentials are summed in Q12.19, so that 511 ones fit */
#define HTPW_Q31_ONE INT32_MAX

/* v * 2^left, limited to int32. */
static int32_t htpw_saturating_left(int32_t v, int32_t left) {
    const int32_t limit = INT32_MAX >> left;
    if (v > limit) {
        return INT32_MAX;
    }
    return v < -limit - 1 ? INT32_MIN : (int32_t)((uint32_t)v << left);
}

/* exp(v), v <= 0 in Q5.26, result in Q0.31: a polynomial on [-1/4, 0), times one factor per higher bit of -v. */
static int32_t htpw_exp_q26(int32_t v) {
    static const int32_t factor[7] = {1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242};
    if (v == 0) {
        return HTPW_Q31_ONE;
    }
    const uint32_t quarter = ((uint32_t)v & 0xFFFFFFu) - 0x1000000u, rest = quarter - (uint32_t)v;
    const int32_t x = (int32_t)((quarter << 5) + (UINT32_C(1) << 28)); /* centred at -1/8 */
    const int32_t x2 = htpw_high_multiply(x, x);
    const int32_t t = htpw_round_shift(htpw_high_multiply(x2, x2), 2) + htpw_high_multiply(x2, x);
    const int32_t u = x + htpw_round_shift(htpw_high_multiply(t, 715827883) + x2, 1); /* 1/3 */
    int32_t r = 1895147668 + htpw_high_multiply(1895147668, u);                       /* exp(-1/8) */
    for (int32_t i = 0; i < 7; i++) {
        if (rest & (UINT32_C(1) << (24 + i))) {
            r = htpw_high_multiply(r, factor[i]);
        }
    }
    return r;
}

/* 1 / (1 + v), v and result in Q0.31, v in [0, 1): three Newton steps from 48/17 - 32/17 * (1 + v) / 2. */
static int32_t htpw_reciprocal_q31(int32_t v) {
    const int32_t half = (int32_t)(((uint32_t)v + (UINT32_C(1) << 31)) >> 1);
    int32_t x = 1515870810 + htpw_high_multiply(half, -1010580540);
    for (int32_t i = 0; i < 3; i++) {
        const int32_t error = (INT32_C(1) << 29) - htpw_high_multiply(half, x);
        x = (int32_t)((uint32_t)x + (uint32_t)htpw_saturating_left(htpw_high_multiply(x, error), 2));
    }
    return htpw_saturating_left(x, 1);
}

void htpw_softmax_s8_ref(int32_t rows, int32_t n, int32_t multiplier, int32_t shift, int32_t diff_min, const int8_t *x,
                         int8_t *y) {
    for (int32_t r = 0; r < rows; r++, x += n, y += n) {
        int32_t top = x[0], sum = 0, headroom = 0;
        for (int32_t i = 1; i < n; i++) {
            top = x[i] > top ? x[i] : top;
        }
        for (int32_t i = 0; i < n; i++) {
            if (x[i] - top >= diff_min) {
                const int32_t scaled = (int32_t)((uint32_t)(x[i] - top) << shift);
                sum += htpw_round_shift(htpw_exp_q26(htpw_high_multiply(scaled, multiplier)), HTPW_SOFTMAX_SUM_SHIFT);
            }
        }
        uint32_t scaled_sum = (uint32_t)sum;
        for (; scaled_sum < UINT32_C(1) << 31; headroom++) {
            scaled_sum <<= 1;
        }
        const int32_t inverse = htpw_reciprocal_q31((int32_t)(scaled_sum - (UINT32_C(1) << 31)));
        for (int32_t i = 0; i < n; i++) {
            int32_t v = INT8_MIN;
            if (x[i] - top >= diff_min) {
                const int32_t scaled = (int32_t)((uint32_t)(x[i] - top) << shift);
                const int32_t e = htpw_exp_q26(htpw_high_multiply(scaled, multiplier));
                v = htpw_clamp(htpw_round_shift(htpw_high_multiply(inverse, e), 35 - headroom) - 128, INT8_MIN,
                               INT8_MAX);
            }
            y[i] = (int8_t)v;
        }
    }
}
