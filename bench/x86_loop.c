/* x86_loop.c - what bench/x86.py times: calls of one kernel in a loop, and the machine's int8 peak. Built by that script. */
#include <time.h>

#include "backends/htpw_backend.h"

static double bench_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Seconds per call of the kernel on cached, packed weights. */
double bench_packed(const struct htpw_backend *b, int calls, int rows, int in_c, int out_c, const struct htpw_requant *q,
                    int in_offset, const int8_t *x, const void *w, const int32_t *bias, void *scratch, int8_t *y) {
    const double start = bench_seconds();
    for (int i = 0; i < calls; i++) {
        b->packed(rows, in_c, out_c, q, in_offset, x, w, bias, scratch, y);
    }
    return (bench_seconds() - start) / calls;
}

/* The same on row-major weights. */
double bench_conv1x1(const struct htpw_backend *b, int calls, int rows, int in_c, int out_c, const struct htpw_requant *q,
                     int in_offset, const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch, int8_t *y) {
    const double start = bench_seconds();
    for (int i = 0; i < calls; i++) {
        b->conv1x1(rows, in_c, out_c, q, in_offset, x, w, bias, scratch, y);
    }
    return (bench_seconds() - start) / calls;
}

/* Seconds per call of conv or, if `depthwise`, of depthwise. */
double bench_window(const struct htpw_backend *b, int depthwise, int calls, const struct htpw_window *g,
                    const struct htpw_requant *q, int in_offset, const int8_t *x, const int8_t *w, const int32_t *bias,
                    void *scratch, int8_t *y) {
    const double start = bench_seconds();
    for (int i = 0; i < calls; i++) {
        (depthwise ? b->depthwise : b->conv)(g, q, in_offset, x, w, bias, scratch, y);
    }
    return (bench_seconds() - start) / calls;
}

/* Seconds per call of add. */
double bench_add(const struct htpw_backend *b, int calls, size_t n, const struct htpw_elementwise *p, const int8_t *u,
                 const int8_t *v, int8_t *y) {
    const double start = bench_seconds();
    for (int i = 0; i < calls; i++) {
        b->add(n, p, u, v, y);
    }
    return (bench_seconds() - start) / calls;
}

/* Seconds per call of avgpool. */
double bench_avgpool(const struct htpw_backend *b, int calls, const struct htpw_window *g, const int8_t *x, int8_t *y) {
    const double start = bench_seconds();
    for (int i = 0; i < calls; i++) {
        b->avgpool(g, -128, 127, x, y);
    }
    return (bench_seconds() - start) / calls;
}

/* Products per second of VPDPBUSD on registers alone, 64 of them in each of 16 independent sums: the int8 peak. 0 without
 * AVX-512 VNNI. */
double bench_peak(int calls) {
#if defined(__x86_64__) && defined(__GNUC__)
    if (__builtin_cpu_supports("avx512vnni")) {
        const double start = bench_seconds();
        for (int i = 0; i < calls; i++) {
#define BENCH_DOT(r) "vpdpbusd %%zmm31, %%zmm30, %%zmm" #r "\n"
            __asm__ volatile(
                BENCH_DOT(0) BENCH_DOT(1) BENCH_DOT(2) BENCH_DOT(3) BENCH_DOT(4) BENCH_DOT(5) BENCH_DOT(6) BENCH_DOT(7)
                BENCH_DOT(8) BENCH_DOT(9) BENCH_DOT(10) BENCH_DOT(11) BENCH_DOT(12) BENCH_DOT(13) BENCH_DOT(14) BENCH_DOT(15)
                    :
                    :
                    : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
                      "xmm12", "xmm13", "xmm14", "xmm15");
        }
        return 16.0 * 64.0 * calls / (bench_seconds() - start);
    }
#endif
    (void)calls;
    return 0;
}
