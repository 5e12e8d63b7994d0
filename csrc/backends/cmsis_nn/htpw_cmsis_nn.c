/* htpw_cmsis_nn.c - sends the steady-state operators to a CMSIS-NN that the user supplies (HTPW_CONFIG_CMSIS_NN, with its
 * headers on the include path and its library linked). Nothing of CMSIS-NN is part of this project.
 *
 * Every routine falls back to the portable one, which gives the same bytes, where CMSIS-NN has no such form (one multiplier
 * for all channels of a convolution), keeps sizes in 16 bits, or is known to differ from its own C build.
 */
#include "htpw_cmsis_nn.h"

#ifdef HTPW_HAS_CMSIS_NN

#include <arm_nnfunctions.h>

/* The rule of this backend, from htpw.h: scratch of htpw_backend_scratch covers arm_convolve_s8 on every core, since its
 * largest need is 4 bytes per product, products rounded up to 16 (Helium). */

static cmsis_nn_dims htpw_cmsis_dims(int32_t n, int32_t h, int32_t w, int32_t c) {
    const cmsis_nn_dims dims = {n, h, w, c};
    return dims;
}

static cmsis_nn_per_channel_quant_params htpw_cmsis_quant(const struct htpw_requant *q) {
    /* CMSIS-NN reads these arrays and writes neither; its struct has no const */
    const cmsis_nn_per_channel_quant_params quant = {(int32_t *)(uintptr_t)q->multiplier,
                                                     (int32_t *)(uintptr_t)q->shift};
    return quant;
}

static int htpw_cmsis_is_small(const struct htpw_window *g, int32_t products) {
    const int32_t sizes[] = {g->in_h,
                             g->in_w,
                             g->in_c,
                             g->out_h,
                             g->out_w,
                             g->out_c,
                             products,
                             (g->out_w - 1) * g->stride_w,
                             (g->out_h - 1) * g->stride_h};
    for (uint32_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        if (sizes[i] > INT16_MAX) {
            return 0;
        }
    }
    return 1;
}

static int htpw_cmsis_has_channels(const struct htpw_requant *q, int32_t out_c) { return q->per_channel || out_c == 1; }

static cmsis_nn_conv_params htpw_cmsis_conv_params(const struct htpw_requant *q, int32_t in_offset) {
    cmsis_nn_conv_params p;
    p.input_offset = in_offset;
    p.output_offset = q->out_offset;
    p.stride.h = p.stride.w = p.dilation.h = p.dilation.w = 1;
    p.padding.h = p.padding.w = 0;
    p.activation.min = q->act_min;
    p.activation.max = q->act_max;
    return p;
}

static void htpw_cmsis_conv(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                            const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch, int8_t *y) {
    const int32_t in_g = g->in_c / g->groups;
    const cmsis_nn_dims input = htpw_cmsis_dims(g->n, g->in_h, g->in_w, g->in_c);
    const cmsis_nn_dims filter = htpw_cmsis_dims(g->out_c, g->k_h, g->k_w, in_g);
    const cmsis_nn_dims output = htpw_cmsis_dims(g->n, g->out_h, g->out_w, g->out_c);
    const cmsis_nn_dims channels = htpw_cmsis_dims(1, 1, 1, g->out_c);
    const cmsis_nn_per_channel_quant_params quant = htpw_cmsis_quant(q);
    cmsis_nn_conv_params p = htpw_cmsis_conv_params(q, in_offset);
    p.stride.h = g->stride_h;
    p.stride.w = g->stride_w;
    p.dilation.h = g->dil_h;
    p.dilation.w = g->dil_w;
    p.padding.h = g->pad_top;
    p.padding.w = g->pad_left;
    const cmsis_nn_context ctx = {scratch, 0};
    if (!htpw_cmsis_has_channels(q, g->out_c) || !htpw_cmsis_is_small(g, g->k_h * g->k_w * g->in_c) || bias == NULL ||
        arm_convolve_s8(&ctx, &p, &quant, &input, x, &filter, w, &channels, bias, NULL, &output, y) !=
            ARM_CMSIS_NN_SUCCESS) {
        htpw_conv_s8_ref(g, q, in_offset, x, w, bias, y);
    }
}

static void htpw_cmsis_depthwise(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                                 const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch, int8_t *y) {
    const cmsis_nn_dims input = htpw_cmsis_dims(g->n, g->in_h, g->in_w, g->in_c);
    const cmsis_nn_dims filter = htpw_cmsis_dims(1, g->k_h, g->k_w, g->out_c);
    const cmsis_nn_dims output = htpw_cmsis_dims(g->n, g->out_h, g->out_w, g->out_c);
    const cmsis_nn_dims channels = htpw_cmsis_dims(1, 1, 1, g->out_c);
    const cmsis_nn_per_channel_quant_params quant = htpw_cmsis_quant(q);
    cmsis_nn_dw_conv_params p;
    p.input_offset = in_offset;
    p.output_offset = q->out_offset;
    p.ch_mult = g->out_c / g->in_c;
    p.stride.h = g->stride_h;
    p.stride.w = g->stride_w;
    p.dilation.h = g->dil_h;
    p.dilation.w = g->dil_w;
    p.padding.h = g->pad_top;
    p.padding.w = g->pad_left;
    p.activation.min = q->act_min;
    p.activation.max = q->act_max;
    const int usable =
        htpw_cmsis_has_channels(q, g->out_c) && htpw_cmsis_is_small(g, g->k_h * g->k_w * g->in_c) && bias != NULL;
    const uint32_t have = htpw_backend_depthwise_scratch(htpw_backend_rule(HTPW_BACKEND_CMSIS_NN),
                                                         (uint32_t)(g->k_h * g->k_w), (uint32_t)g->out_c);
    const int32_t need = usable ? arm_depthwise_conv_wrapper_s8_get_buffer_size(&p, &input, &filter, &output) : 0;
    const cmsis_nn_context ctx = {need > 0 ? scratch : NULL, 0};
    arm_cmsis_nn_status status = ARM_CMSIS_NN_ARG_ERROR;
    if (usable && (uint32_t)need <= have && g->in_c > 1) {
        status = arm_depthwise_conv_wrapper_s8(&ctx, &p, &quant, &input, x, &filter, w, &channels, bias, &output, y);
    } else if (
        usable) { /* needs no scratch; one input channel would be sent to the 1xN kernel, which is wrong on Helium */
        status = arm_depthwise_conv_s8(&ctx, &p, &quant, &input, x, &filter, w, &channels, bias, &output, y);
    }
    if (status != ARM_CMSIS_NN_SUCCESS) {
        htpw_depthwise_s8_ref(g, q, in_offset, x, w, bias, y);
    }
}

static void htpw_cmsis_conv1x1(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                               int32_t in_offset, const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch,
                               int8_t *y) {
    const cmsis_nn_dims input = htpw_cmsis_dims(1, 1, rows, in_c);
    const cmsis_nn_dims filter = htpw_cmsis_dims(out_c, 1, 1, in_c);
    const cmsis_nn_dims output = htpw_cmsis_dims(1, 1, rows, out_c);
    const cmsis_nn_dims channels = htpw_cmsis_dims(1, 1, 1, out_c);
    const cmsis_nn_per_channel_quant_params quant = htpw_cmsis_quant(q);
    const cmsis_nn_conv_params p = htpw_cmsis_conv_params(q, in_offset);
    const cmsis_nn_context ctx = {NULL, 0};
    (void)scratch;
    if (rows == 0 || !htpw_cmsis_has_channels(q, out_c) || rows > INT16_MAX || in_c > INT16_MAX || out_c > INT16_MAX ||
        arm_convolve_1x1_s8_fast(&ctx, &p, &quant, &input, x, &filter, w, &channels, bias, &output, y) !=
            ARM_CMSIS_NN_SUCCESS) {
        htpw_conv1x1_s8_ref(rows, in_c, out_c, q, in_offset, x, w, bias, y);
    }
}

static void htpw_cmsis_packed(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                              int32_t in_offset, const int8_t *x, const void *packed, const int32_t *bias,
                              void *scratch, int8_t *y) {
    htpw_cmsis_conv1x1(rows, in_c, out_c, q, in_offset, x, (const int8_t *)packed, bias, scratch, y); /* row-major */
}

static void htpw_cmsis_add(size_t n, const struct htpw_elementwise *p, const int8_t *a, const int8_t *b, int8_t *y) {
    if (n > INT32_MAX ||
        arm_elementwise_add_s8(a, b, p->a_offset, p->a_multiplier, p->a_shift, p->b_offset, p->b_multiplier, p->b_shift,
                               p->left_shift, y, p->out_offset, p->out_multiplier, p->out_shift, p->act_min, p->act_max,
                               (int32_t)n) != ARM_CMSIS_NN_SUCCESS) {
        htpw_add_s8_ref(n, p, a, b, y);
    }
}

static void htpw_cmsis_maxpool(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x,
                               int8_t *y) {
    const cmsis_nn_dims input = htpw_cmsis_dims(g->n, g->in_h, g->in_w, g->in_c);
    const cmsis_nn_dims filter = htpw_cmsis_dims(1, g->k_h, g->k_w, 1);
    const cmsis_nn_dims output = htpw_cmsis_dims(g->n, g->out_h, g->out_w, g->out_c);
    const cmsis_nn_context ctx = {NULL, 0};
    cmsis_nn_pool_params p;
    p.stride.h = g->stride_h;
    p.stride.w = g->stride_w;
    p.padding.h = g->pad_top;
    p.padding.w = g->pad_left;
    p.activation.min = act_min;
    p.activation.max = act_max;
    if (!htpw_cmsis_is_small(g, 1) ||
        arm_max_pool_s8(&ctx, &p, &input, x, &filter, &output, y) != ARM_CMSIS_NN_SUCCESS) {
        htpw_maxpool_s8_ref(g, act_min, act_max, x, y);
    }
}

/* arm_avgpool_s8 wants a buffer on some cores; the portable pool needs none and gives the same bytes. */
const struct htpw_backend htpw_backend_cmsis_nn = {
    HTPW_BACKEND_CMSIS_NN, htpw_cmsis_conv,     htpw_cmsis_depthwise, htpw_cmsis_conv1x1,    htpw_cmsis_packed,
    htpw_cmsis_add,        htpw_avgpool_s8_ref, htpw_cmsis_maxpool,   htpw_conv1x1_s4_plain, NULL};

#else
typedef int htpw_cmsis_nn_is_off; /* ISO C wants a declaration in every file */
#endif
