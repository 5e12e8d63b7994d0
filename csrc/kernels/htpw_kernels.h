/* htpw_kernels.h - the contract of the integer kernels.
 *
 * One declaration per replaceable routine. `_ref` is portable C99 and is the definition; a backend's version
 * (`_dsp`, `_mve`, `_avx2`, `_vnni`) gives the same bytes.
 *
 * All kernels: NHWC, int8; 1-D signals have h = 1. Outputs are fully written. Kernels return nothing: their arguments
 * were checked by htpw_model_open or by the caller.
 *   Range    sums must satisfy docs/SPEC.md section 7, so that no int32 overflows
 *   Rounding htpw_requantise once per output, then + out_offset, then clamp (max with act_min first)
 *   Alias    y overlaps no input unless a routine says so
 *   Source   behaviour of CMSIS-NN's default (double-rounding) build, routine named at each declaration
 */
#ifndef HTPW_KERNELS_H
#define HTPW_KERNELS_H

#ifndef HTPW_CDEF /* the Python binding parses this header with its own integer types */
#include <stddef.h>
#include <stdint.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Requantisation of one layer. Arrays have one entry per output channel, or one in all if per_channel is 0. */
struct htpw_requant {
    const int32_t *multiplier; /* Q0.31; real scale = multiplier * 2^(shift - 31); [0, 2^31 - 1] */
    const int32_t *shift;      /* [-31, 30]; positive shifts left */
    int32_t per_channel;       /* 0 or 1 */
    int32_t out_offset;        /* zero point of the output, [-128, 127] */
    int32_t act_min, act_max;  /* clamp, [-128, 127], act_min <= act_max */
};

/* Geometry of a convolution, depthwise convolution or pooling window. Sizes in elements, all >= 1 unless stated. */
struct htpw_window {
    int32_t n;                      /* batches */
    int32_t in_h, in_w, in_c;       /* input */
    int32_t out_h, out_w, out_c;    /* output */
    int32_t k_h, k_w;               /* kernel or pooling window */
    int32_t stride_h, stride_w;
    int32_t pad_top, pad_left;      /* >= 0; bottom and right padding follow from out_h, out_w */
    int32_t dil_h, dil_w;           /* dilation; 1 for pooling */
    int32_t groups;                 /* conv only; divides in_c and out_c */
};

/* round(v * multiplier * 2^(shift - 31)) with CMSIS-NN's two rounding steps (arm_nn_requantize).
 * Range    multiplier any int32, shift [-31, 30]
 * Units    v any scale, LSB out. Never undefined: the left shift wraps modulo 2^32 for v out of SPEC section 7's range. */
int32_t htpw_requantise(int32_t v, int32_t multiplier, int32_t shift);

/* y[n][oy][ox][o] = q(bias[o] + sum (x + in_offset) * w); x[n][h][w][in_c], w[out_c][k_h][k_w][in_c/groups].
 * bias may be NULL (= 0). Source arm_convolve_s8. */
void htpw_conv_s8_ref(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset, const int8_t *x,
                      const int8_t *w, const int32_t *bias, int8_t *y);

/* Pointwise: y[r][o] = q(bias[o] + sum_i (x[r][i] + in_offset) * w[o][i]); x[rows][in_c], w[out_c][in_c].
 * Source arm_convolve_1x1_s8_fast. */
void htpw_conv1x1_s8_ref(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q, int32_t in_offset,
                         const int8_t *x, const int8_t *w, const int32_t *bias, int8_t *y);

/* Depthwise; out_c is a multiple of in_c, output channel o reads input channel o / (out_c/in_c);
 * w[k_h][k_w][out_c]. Source arm_depthwise_conv_wrapper_s8. */
void htpw_depthwise_s8_ref(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                           const int8_t *x, const int8_t *w, const int32_t *bias, int8_t *y);

/* y[b][o] = q(bias[o] + sum_i (x[b][i] + in_offset) * (w[o][i] + w_offset)); x[rows][in_c], w[out_c][in_c].
 * Source arm_fully_connected_s8, arm_fully_connected_per_channel_s8. */
void htpw_fully_connected_s8_ref(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                                 int32_t in_offset, int32_t w_offset, const int8_t *x, const int8_t *w,
                                 const int32_t *bias, int8_t *y);

/* Mean of the in-bounds cells, to nearest, ties away from zero; maximum of the same. Every window has at least one
 * in-bounds cell. g: n, in_*, out_h, out_w, k_*, stride_*, pad_*; in_c = out_c. Source arm_avgpool_s8, arm_max_pool_s8. */
void htpw_avgpool_s8_ref(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y);
void htpw_maxpool_s8_ref(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y);

/* Scalars of an element-wise operator; offsets of inputs are minus their zero points. */
struct htpw_elementwise {
    int32_t a_offset, a_multiplier, a_shift; /* mul uses only the offsets of a and b */
    int32_t b_offset, b_multiplier, b_shift;
    int32_t left_shift;                      /* add only, [16, 22] */
    int32_t out_offset, out_multiplier, out_shift;
    int32_t act_min, act_max;
};

/* y[i] = q(rq((a + a_offset) << left_shift) + rq((b + b_offset) << left_shift)). y may be a or b.
 * Source arm_elementwise_add_s8. */
void htpw_add_s8_ref(size_t n, const struct htpw_elementwise *p, const int8_t *a, const int8_t *b, int8_t *y);

/* y[i] = q((a + a_offset) * (b + b_offset)). y may be a or b. Source arm_elementwise_mul_s8. */
void htpw_mul_s8_ref(size_t n, const struct htpw_elementwise *p, const int8_t *a, const int8_t *b, int8_t *y);

/* Softmax over the n values of each row; y has scale 1/256, zero point -128.
 * Range    n in [1, 511], multiplier >= 0 (Q0.31), shift in [0, 30], diff_min <= 0 (LSB of x): values further below
 *          their maximum give -128; multiplier, shift from a 5-integer-bit input scale
 * Alias    y may be x
 * Source   arm_softmax_s8 */
void htpw_softmax_s8_ref(int32_t rows, int32_t n, int32_t multiplier, int32_t shift, int32_t diff_min, const int8_t *x,
                         int8_t *y);

/* y[i] = x[i] clamped; y may be x. ReLU is (zp, 127), with the zero point 0 it is arm_relu_q7; (0, 6) is arm_relu6_s8. */
void htpw_clamp_s8_ref(size_t n, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y);

/* y[i] = table[x[i] + 128], a table of 256 entries: any function of one int8. y may be x. */
void htpw_table_s8_ref(size_t n, const int8_t *table, const int8_t *x, int8_t *y);

/* The same layers with weights of 4 bits, [-8, 7]: the whole row-major kernel in ceil(n/2) bytes, even index in the low
 * nibble, two's complement. Rows are not padded, so a row of odd length starts inside a byte.
 * Source arm_convolve_s4, arm_convolve_1x1_s4_fast, arm_depthwise_conv_s4, arm_fully_connected_s4. */
void htpw_conv_s4_ref(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset, const int8_t *x,
                      const uint8_t *w, const int32_t *bias, int8_t *y);
void htpw_conv1x1_s4_ref(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q, int32_t in_offset,
                         const int8_t *x, const uint8_t *w, const int32_t *bias, int8_t *y);
void htpw_depthwise_s4_ref(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                           const int8_t *x, const uint8_t *w, const int32_t *bias, int8_t *y);
void htpw_fully_connected_s4_ref(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                                 int32_t in_offset, const int8_t *x, const uint8_t *w, const int32_t *bias, int8_t *y);

/* The packed low-level fields of the image (docs/SPEC.md section 3): value i of width `bits` (0..32; width 0
 * reads nothing and is 0), two's complement or unsigned. */
int32_t htpw_bits_signed(const uint8_t *stream, uint32_t index, uint32_t bits);
uint32_t htpw_bits_unsigned(const uint8_t *stream, uint32_t index, uint32_t bits);

/* Values 0 .. n - 1 of a stream. */
void htpw_bits_unpack_signed(const uint8_t *stream, uint32_t n, uint32_t bits, int32_t *y);
void htpw_bits_unpack_unsigned(const uint8_t *stream, uint32_t n, uint32_t bits, uint32_t *y);

#ifdef __cplusplus
}
#endif
#endif
