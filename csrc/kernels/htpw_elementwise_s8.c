/* htpw_elementwise_s8.c - sum and product of two int8 tensors of equal shape. */
#include "htpw_requantise.h"

static int8_t htpw_elementwise_output(const struct htpw_elementwise *p, int32_t v) {
    const uint32_t r = (uint32_t)htpw_requantise_inline(v, p->out_multiplier, p->out_shift);
    return (int8_t)htpw_clamp((int32_t)(r + (uint32_t)p->out_offset), p->act_min, p->act_max);
}

void htpw_add_s8_ref(size_t n, const struct htpw_elementwise *p, const int8_t *a, const int8_t *b, int8_t *y) {
    for (size_t i = 0; i < n; i++) {
        const uint32_t va = (uint32_t)(a[i] + p->a_offset) << p->left_shift;
        const uint32_t vb = (uint32_t)(b[i] + p->b_offset) << p->left_shift;
        const uint32_t ra = (uint32_t)htpw_requantise_inline((int32_t)va, p->a_multiplier, p->a_shift);
        const uint32_t rb = (uint32_t)htpw_requantise_inline((int32_t)vb, p->b_multiplier, p->b_shift);
        y[i] = htpw_elementwise_output(p, (int32_t)(ra + rb));
    }
}

void htpw_mul_s8_ref(size_t n, const struct htpw_elementwise *p, const int8_t *a, const int8_t *b, int8_t *y) {
    for (size_t i = 0; i < n; i++) {
        y[i] = htpw_elementwise_output(p, (a[i] + p->a_offset) * (b[i] + p->b_offset));
    }
}
