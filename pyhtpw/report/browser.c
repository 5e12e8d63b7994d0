/* The library in a browser: a page hands in an image and windows, and takes out kernels and logits.
 *
 * Compiled for wasm32 without a C library or any import (pyhtpw/report/browser.py), beside csrc/ as it stands; memory is given out
 * from the end of the program's own and never taken back. One image at a time, on the portable backend: wasm32 has no other. */
#include "htpw.h"

#define EXPORT(name) __attribute__((export_name(#name)))
enum { PAGE = 65536 };

extern uint8_t __heap_base; /* where the linker says that free memory begins */
static uintptr_t next;
static struct htpw_model model;
static struct htpw_context context;
static struct htpw_plan plan;

/* `bytes` of memory, aligned to 16; 0 if the browser gives no more. */
EXPORT(take) void *take(size_t bytes) {
    if (next == 0) {
        next = ((uintptr_t)&__heap_base + 15) & ~(uintptr_t)15;
    }
    const uintptr_t at = next, end = at + ((bytes + 15) & ~(size_t)15);
    const uintptr_t have = __builtin_wasm_memory_size(0) * (uintptr_t)PAGE;
    if (end < at || (end > have && __builtin_wasm_memory_grow(0, (end - have + PAGE - 1) / PAGE) == (size_t)-1)) {
        return NULL;
    }
    next = end;
    return (void *)at;
}

/* Opens an image and binds it with no kernel made yet; 0 or an error of htpw.h. */
EXPORT(open) int open_image(const void *image, size_t length) {
    int error = htpw_model_open(&model, image, length);
    if (error == 0) {
        error = htpw_plan_memory(&model, HTPW_BACKEND_BEST, &plan);
    }
    if (error == 0) {
        void *arena = take(plan.arena_bytes), *cache = take(plan.cache_bytes);
        error = htpw_bind(&context, &model, HTPW_BACKEND_BEST, arena, arena ? plan.arena_bytes : 0, cache,
                          cache ? plan.cache_bytes : 0, HTPW_LAZY);
    }
    return error;
}

EXPORT(input_bytes) size_t input_bytes(void) { return plan.input_bytes; }
EXPORT(output_bytes) size_t output_bytes(void) { return plan.output_bytes; }
EXPORT(kernels) size_t kernels(void) { return model.cached_count; }

/* Bytes of cached kernel i; 0 if there is none. */
EXPORT(kernel_bytes) size_t kernel_bytes(uint32_t i) {
    struct htpw_kernel_info info;
    return htpw_kernel_info(&model, i, &info) == 0 ? info.bytes : 0;
}

/* Makes cached kernel i, again if it is there, and copies it out row-major; 0 or an error. */
EXPORT(synthesise) int synthesise(uint32_t i, int8_t *out, size_t bytes) {
    const int error = htpw_synth_layer(&context, i);
    return error ? error : htpw_kernel_read(&context, i, out, bytes);
}

EXPORT(run) int run(const int8_t *window, int8_t *logits) {
    return htpw_run(&context, window, plan.input_bytes, logits, plan.output_bytes);
}

EXPORT(sha256) void sha256(const void *data, size_t bytes, uint8_t *digest) { htpw_sha256(data, bytes, digest); }
EXPORT(error_text) const char *error_text(int code) { return htpw_error_text(code); }
EXPORT(version) const char *version(void) { return htpw_version(); }
EXPORT(backend) const char *backend(void) { return htpw_backend_name(HTPW_BACKEND_BEST); }
