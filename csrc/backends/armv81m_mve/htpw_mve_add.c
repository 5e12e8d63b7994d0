/* htpw_mve_add.c - the sum of two tensors with Helium, and the table of the backend. */
#include "htpw_mve.h"

#ifdef HTPW_HAS_ARMV81M_MVE

/* ((x + offset) << left) requantised with shift <= 0. */
HTPW_MVE_INLINE int32x4_t htpw_mve_term(int32x4_t x, int32_t offset, int32_t left, int32_t multiplier,
                                        int32x4_t right) {
    const int32x4_t v = vshlq_r_s32(vaddq_n_s32(x, offset), left);
    return htpw_mve_round_shift(vqrdmulhq_n_s32(v, multiplier), right);
}

/* Four sums, without the clamp. */
HTPW_MVE_INLINE int32x4_t htpw_mve_sum(const struct htpw_elementwise *p, int32x4_t a, int32x4_t b, int32x4_t a_right,
                                       int32x4_t b_right, int32x4_t right) {
    const int32x4_t va = htpw_mve_term(a, p->a_offset, p->left_shift, p->a_multiplier, a_right);
    const int32x4_t vb = htpw_mve_term(b, p->b_offset, p->left_shift, p->b_multiplier, b_right);
    const int32x4_t v = vqrdmulhq_n_s32(vaddq_s32(va, vb), p->out_multiplier);
    return vaddq_n_s32(htpw_mve_round_shift(v, right), p->out_offset);
}

void htpw_mve_add(size_t n, const struct htpw_elementwise *p, const int8_t *a, const int8_t *b, int8_t *y) {
    if (p->a_shift > 0 || p->b_shift > 0 || p->out_shift > 0) {
        htpw_add_s8_ref(n, p, a, b, y);
        return;
    }
    const int32x4_t a_right = vdupq_n_s32(p->a_shift), b_right = vdupq_n_s32(p->b_shift);
    const int32x4_t right = vdupq_n_s32(p->out_shift), low = vdupq_n_s32(p->act_min), high = vdupq_n_s32(p->act_max);
    const struct htpw_elementwise scalars = *p; /* which y cannot overlap */
    for (size_t i = n / 4; i > 0; i--, a += 4, b += 4, y += 4) {
        const int32x4_t v = htpw_mve_sum(&scalars, vldrbq_s32(a), vldrbq_s32(b), a_right, b_right, right);
        vstrbq_s32(y, vminq_s32(vmaxq_s32(v, low), high));
    }
    if (n % 4 != 0) {
        const mve_pred16_t lanes = vctp32q((uint32_t)(n % 4));
        const int32x4_t va = vldrbq_z_s32(a, lanes), vb = vldrbq_z_s32(b, lanes);
        const int32x4_t v = htpw_mve_sum(&scalars, va, vb, a_right, b_right, right);
        vstrbq_p_s32(y, vminq_s32(vmaxq_s32(v, low), high), lanes);
    }
}

const struct htpw_backend htpw_backend_armv81m_mve = {HTPW_BACKEND_ARMV81M_MVE,
                                                      HTPW_IF(HTPW_WITH(CONV), htpw_mve_conv),
                                                      HTPW_IF(HTPW_WITH(DEPTHWISE), htpw_mve_depthwise),
                                                      HTPW_IF(HTPW_ANY_ROWS, htpw_mve_conv1x1),
                                                      HTPW_IF(HTPW_ANY_PACKED, htpw_mve_packed),
                                                      HTPW_IF(HTPW_WITH(ADD), htpw_mve_add),
                                                      HTPW_IF(HTPW_WITH(AVGPOOL), htpw_mve_avgpool),
                                                      HTPW_IF(HTPW_WITH(MAXPOOL), htpw_mve_maxpool),
                                                      HTPW_IF(HTPW_WITH(NARROW), htpw_conv1x1_s4_plain),
                                                      HTPW_IF(HTPW_ANY_FUSED, htpw_mve_synth)};

#endif
