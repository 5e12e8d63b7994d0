/* The library on the user's own core: an embedded image with every operator and head kind, whose kernels and logits are known. */
#include "htpw_internal.h"
#include "htpw_selftest_image.h"

/* Fills a window with bytes that any core makes alike. */
static uint32_t htpw_selftest_window(uint32_t state, uint32_t n, int8_t *x) {
    for (uint32_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        x[i] = (int8_t)((int32_t)state >> 24);
    }
    return state;
}

int htpw_selftest(int backend, void *memory, size_t bytes) {
    struct htpw_model model;
    struct htpw_context ctx;
    struct htpw_plan plan;
    struct htpw_kernel_info info;
    int8_t x[HTPW_SELFTEST_INPUT], y[HTPW_SELFTEST_OUTPUT];
    if (memory == NULL) {
        return HTPW_ERR_ARGUMENT;
    }
    int error = htpw_model_open(&model, htpw_selftest_image.bytes, sizeof htpw_selftest_image.bytes);
    error = error == HTPW_OK ? htpw_plan_memory(&model, backend, &plan) : error;
    if (error != HTPW_OK) {
        return error;
    }
    if (plan.input_bytes != sizeof x || plan.output_bytes != sizeof y) {
        return HTPW_ERR_SELFTEST;
    }
    if (bytes < plan.arena_bytes + plan.cache_bytes + HTPW_SELFTEST_KERNEL) {
        return HTPW_ERR_ARENA;
    }
    uint8_t *cache = (uint8_t *)memory + plan.arena_bytes, *kernel = cache + plan.cache_bytes;
    error = htpw_bind(&ctx, &model, backend, memory, plan.arena_bytes, cache, plan.cache_bytes, HTPW_BOOT);
    uint32_t kernels = 0, logits = 0, state = 1;
    for (uint32_t i = 0; error == HTPW_OK && i < model.cached_count; i++) {
        (void)htpw_kernel_info(&model, i, &info);
        if (info.bytes > HTPW_SELFTEST_KERNEL) {
            return HTPW_ERR_SELFTEST;
        }
        error = htpw_kernel_read(&ctx, i, (int8_t *)kernel, info.bytes);
        kernels = htpw_crc32(kernels, kernel, info.bytes);
    }
    for (uint32_t i = 0; error == HTPW_OK && i < HTPW_SELFTEST_WINDOWS; i++) {
        state = htpw_selftest_window(state, sizeof x, x);
        error = htpw_run(&ctx, x, sizeof x, y, sizeof y);
        logits = htpw_crc32(logits, y, sizeof y);
    }
    if (error != HTPW_OK) {
        return error;
    }
    return kernels == HTPW_SELFTEST_KERNELS_CRC && logits == HTPW_SELFTEST_LOGITS_CRC ? HTPW_OK : HTPW_ERR_SELFTEST;
}
