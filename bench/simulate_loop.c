/* simulate_loop.c - what bench/simulate.py times: whole windows, and how much of that is spent in kernels. Built by that script. */
#include <time.h>

#include "htpw_internal.h"

static const struct htpw_backend *real; /* whose kernels run */
static double in_kernels;               /* seconds */

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

#define TIMED(call)                                                                                                    \
    do {                                                                                                               \
        const double start = seconds();                                                                                \
        call;                                                                                                          \
        in_kernels += seconds() - start;                                                                               \
    } while (0)

static void conv(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset, const int8_t *x,
                 const int8_t *w, const int32_t *bias, void *scratch, int8_t *y) {
    TIMED(real->conv(g, q, in_offset, x, w, bias, scratch, y));
}

static void depthwise(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset, const int8_t *x,
                      const int8_t *w, const int32_t *bias, void *scratch, int8_t *y) {
    TIMED(real->depthwise(g, q, in_offset, x, w, bias, scratch, y));
}

static void conv1x1(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q, int32_t in_offset,
                    const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch, int8_t *y) {
    TIMED(real->conv1x1(rows, in_c, out_c, q, in_offset, x, w, bias, scratch, y));
}

static void packed(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q, int32_t in_offset,
                   const int8_t *x, const void *w, const int32_t *bias, void *scratch, int8_t *y) {
    TIMED(real->packed(rows, in_c, out_c, q, in_offset, x, w, bias, scratch, y));
}

static void add(size_t n, const struct htpw_elementwise *p, const int8_t *a, const int8_t *b, int8_t *y) {
    TIMED(real->add(n, p, a, b, y));
}

static void avgpool(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y) {
    TIMED(real->avgpool(g, act_min, act_max, x, y));
}

static void maxpool(const struct htpw_window *g, int32_t act_min, int32_t act_max, const int8_t *x, int8_t *y) {
    TIMED(real->maxpool(g, act_min, act_max, x, y));
}

static void conv1x1_s4(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q, int32_t in_offset,
                       const int8_t *x, const uint8_t *w, const int32_t *bias, void *scratch, int8_t *y) {
    TIMED(real->conv1x1_s4(rows, in_c, out_c, q, in_offset, x, w, bias, scratch, y));
}

/* Runs `count` windows, `most` at a time in an arena for so many; with `kernels` not NULL the seconds spent in kernels are
 * put there. Returns all seconds, or an error. */
double simulate(struct htpw_context *ctx, void *arena, size_t most, size_t count, const int8_t *x, size_t in, int8_t *y,
                size_t out, double *kernels) {
    struct htpw_backend timed;
    const struct htpw_backend *before = ctx->backend;
    double start;
    int error = 0;
    real = before;
    timed = *real;
    timed.conv = conv;
    timed.depthwise = depthwise;
    timed.conv1x1 = conv1x1;
    timed.packed = packed;
    timed.add = add;
    timed.avgpool = avgpool;
    timed.maxpool = maxpool;
    timed.conv1x1_s4 = conv1x1_s4;
    in_kernels = 0;
    if (kernels != NULL) {
        ctx->backend = &timed;
    }
    start = seconds();
    for (size_t i = 0; i < count && error == 0; i += most) {
        error = htpw_run_batch(ctx, arena, (uint32_t)(count - i < most ? count - i : most), x + i * in, y + i * out);
    }
    start = seconds() - start;
    ctx->backend = before;
    if (kernels != NULL) {
        *kernels = in_kernels;
    }
    return error != 0 ? (double)error : start;
}
