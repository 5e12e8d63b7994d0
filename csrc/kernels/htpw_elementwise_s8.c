/* htpw_elementwise_s8.c - sum and product of two int8 tensors of equal shape. */
#include "htpw_requantise.h"
#include "htpw_window.h"

static int8_t htpw_elementwise_output(const struct htpw_elementwise *p, int32_t v) {
    const uint32_t r = (uint32_t)htpw_requantise_inline(v, p->out_multiplier, p->out_shift);
    return (int8_t)htpw_clamp((int32_t)(r + (uint32_t)p->out_offset), p->act_min, p->act_max);
}

#if defined(HTPW_SMALL_DSP) && !HTPW_WITH(ODD)

/* htpw_requantise for shifts of at most 0, and |v| < 2^30: what is left without ODD shapes, since |a + offset| < 2^8 and
 * left_shift <= 21. */
static HTPW_FOLDED int32_t htpw_small_requantise(int32_t v, int32_t multiplier, int32_t shift) {
    const int32_t h = htpw_small_high(v * 2, multiplier);
    return shift == 0 ? h : (((h + (h >> 31)) >> ~shift) + 1) >> 1;
}

void htpw_add_s8_ref(size_t n, const struct htpw_elementwise *p, const int8_t *a, const int8_t *b, int8_t *y) {
    const int8_t *const end = y + n;
    while (y != end) {
        int32_t v = htpw_small_requantise((*a++ + p->a_offset) * (1 << p->left_shift), p->a_multiplier, p->a_shift);
        v += htpw_small_requantise((*b++ + p->b_offset) * (1 << p->left_shift), p->b_multiplier, p->b_shift);
        v = htpw_small_requantise(v, p->out_multiplier, p->out_shift) + p->out_offset;
        *y++ = (int8_t)htpw_clamp(v, p->act_min, p->act_max);
    }
}

#else

void htpw_add_s8_ref(size_t n, const struct htpw_elementwise *p, const int8_t *a, const int8_t *b, int8_t *y) {
    for (size_t i = 0; i < n; i++) {
        const uint32_t va = (uint32_t)(a[i] + p->a_offset) << p->left_shift;
        const uint32_t vb = (uint32_t)(b[i] + p->b_offset) << p->left_shift;
        const uint32_t ra = (uint32_t)htpw_requantise_inline((int32_t)va, p->a_multiplier, p->a_shift);
        const uint32_t rb = (uint32_t)htpw_requantise_inline((int32_t)vb, p->b_multiplier, p->b_shift);
        y[i] = htpw_elementwise_output(p, (int32_t)(ra + rb));
    }
}

#endif

void htpw_mul_s8_ref(size_t n, const struct htpw_elementwise *p, const int8_t *a, const int8_t *b, int8_t *y) {
    for (size_t i = 0; i < n; i++) {
        y[i] = htpw_elementwise_output(p, (a[i] + p->a_offset) * (b[i] + p->b_offset));
    }
}
