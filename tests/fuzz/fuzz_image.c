/* fuzz_image - any bytes as an image: open, plan for every backend, bind with all four schedules, run, read kernels back.
 *
 * Input: FUZZ_CONTROL bytes of choices, then the image. Memory is allocated exactly as planned, one block per purpose. Besides memory errors
 * these are findings: schedules or backends that differ in a kernel or a logit, a store in flash that a power cut spoils, and generator,
 * head or code bytes that are read after every kernel has been made (they are poisoned for that time).
 *
 * An image may ask for any amount of work in few bytes, so one that costs more than FUZZ_COST_MAX multiply-accumulates or
 * FUZZ_MEMORY_MAX bytes is opened and planned, but not run. 2^20 of them are about 10 ms in the portable kernels under ASan, so that the
 * dozen passes of one input stay near 0.1 s; and 2^20 is some hundred times what the seeds need.
 */
#include <sanitizer/asan_interface.h>
#include <string.h>

#include "fuzz.h"
#include "ports/htpw_fake_flash.h"

#define FUZZ_COST_MAX (UINT64_C(1) << 20)
#define FUZZ_MEMORY_MAX (UINT32_C(1) << 22)

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed);
size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size, uint8_t *out, size_t out_max,
                                 unsigned int seed);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Logits, then every kernel in row-major order: what all ways of running an image must agree in. */
struct fuzz_result {
    uint8_t *bytes;
    size_t logits, total;
};

/* Generator, heads and codes of an image, forbidden while it runs with all kernels made. */
static void fuzz_forbid(const struct htpw_model *model, int is_forbidden) {
    const struct htpw_span spans[3] = {model->generators, model->heads, model->codes};
    for (int i = 0; i < 3; i++) {
        if (spans[i].length >= 8) { /* shadow granules; sections begin at multiples of 16 */
            if (is_forbidden) {
                ASAN_POISON_MEMORY_REGION(spans[i].data, spans[i].length & ~UINT32_C(7));
            } else {
                ASAN_UNPOISON_MEMORY_REGION(spans[i].data, spans[i].length & ~UINT32_C(7));
            }
        }
    }
}

static void fuzz_window(int8_t *x, uint32_t n, uint32_t seed) {
    for (uint32_t i = 0; i < n; i++) {
        const uint32_t r = fuzz_random(&seed);
        x[i] = (int8_t)((r & 7u) == 0 ? (r & 8u) != 0 ? -128 : 127 : (int32_t)(r >> 8 & 255u) - 128);
    }
}

/* Runs a bound context and collects its result; the first one is kept, later ones are compared with it. */
static void fuzz_collect(struct htpw_context *ctx, const struct htpw_plan *plan, uint32_t seed, int are_made,
                         struct fuzz_result *result) {
    const struct htpw_model *model = ctx->model;
    struct htpw_kernel_info info;
    size_t total = plan->output_bytes;
    for (uint32_t i = 0; i < model->cached_count; i++) {
        FUZZ_CHECK(htpw_kernel_info(model, i, &info) == HTPW_OK);
        total += info.bytes;
    }
    int8_t *x = fuzz_alloc(plan->input_bytes), *y = fuzz_alloc(plan->output_bytes);
    uint8_t *bytes = fuzz_alloc(total);
    fuzz_window(x, plan->input_bytes, seed);
    if (are_made) {
        fuzz_forbid(model, 1);
    }
    FUZZ_CHECK(htpw_run(ctx, x, plan->input_bytes, y, plan->output_bytes) == HTPW_OK);
    memcpy(bytes, y, plan->output_bytes);
    size_t at = plan->output_bytes;
    for (uint32_t i = 0; i < model->cached_count; i++) {
        FUZZ_CHECK(htpw_kernel_info(model, i, &info) == HTPW_OK);
        int8_t *kernel = fuzz_alloc(info.bytes);
        FUZZ_CHECK(htpw_kernel_read(ctx, i, kernel, info.bytes) == HTPW_OK);
        memcpy(bytes + at, kernel, info.bytes);
        at += info.bytes;
        free(kernel);
    }
    FUZZ_CHECK(htpw_run(ctx, x, plan->input_bytes, y, plan->output_bytes) == HTPW_OK); /* again, on a used arena */
    FUZZ_CHECK(memcmp(bytes, y, plan->output_bytes) == 0);
    fuzz_forbid(model, 0);
    free(x);
    free(y);
    if (result->bytes == NULL) {
        result->bytes = bytes;
        result->total = total;
    } else {
        FUZZ_CHECK(result->total == total && memcmp(result->bytes, bytes, total) == 0);
        free(bytes);
    }
}

static void fuzz_sram(const struct htpw_model *model, int backend, int schedule, uint32_t seed, struct fuzz_result *result) {
    struct htpw_plan plan;
    struct htpw_context ctx;
    FUZZ_CHECK(htpw_plan_memory(model, backend, &plan) == HTPW_OK);
    uint8_t *arena = fuzz_alloc(plan.arena_bytes), *cache = fuzz_alloc(plan.cache_bytes);
    if (plan.arena_bytes != 0) {
        FUZZ_CHECK(htpw_bind(&ctx, model, backend, arena, plan.arena_bytes - 1u, cache, plan.cache_bytes, schedule) == HTPW_ERR_ARENA);
    }
    FUZZ_CHECK(htpw_bind(&ctx, model, backend, arena, plan.arena_bytes, cache, plan.cache_bytes, schedule) == HTPW_OK);
    fuzz_collect(&ctx, &plan, seed, schedule == HTPW_BOOT, result);
    free(arena);
    free(cache);
}

/* Streamed into a flash that holds whatever it did before, with a power cut, then streamed again, then installed. */
static void fuzz_store(const struct htpw_model *model, int backend, const uint8_t *control, uint32_t seed,
                       struct fuzz_result *result) {
    struct htpw_plan plan;
    struct htpw_context ctx;
    struct htpw_fake_flash fake;
    struct htpw_flash flash;
    const uint32_t page_bytes = UINT32_C(4) << (control[3] & 7u), erase_bytes = page_bytes * (1u + (control[3] >> 3 & 7u));
    const struct htpw_flash geometry = {.page_bytes = page_bytes, .erase_bytes = erase_bytes};
    FUZZ_CHECK(htpw_plan_memory(model, backend, &plan) == HTPW_OK);
    const uint32_t bytes = htpw_flash_bytes(&plan, &geometry);
    FUZZ_CHECK(bytes != 0);
    const size_t streamed = plan.streamed_arena_bytes, installed = plan.installed_arena_bytes;
    uint8_t *arena = fuzz_alloc(streamed), *small = fuzz_alloc(installed), *memory = fuzz_alloc(bytes), *page = fuzz_alloc(page_bytes);
    uint32_t before = seed;
    for (uint32_t i = 0; i < bytes; i++) {
        memory[i] = (control[4] & 1u) != 0 ? (uint8_t)fuzz_random(&before) : 0xFFu;
    }
    htpw_fake_flash_open(&fake, memory, bytes, page_bytes, erase_bytes, page, &flash);
    htpw_fake_flash_power(&fake, control[5]);
    const int first = htpw_bind_flash(&ctx, model, backend, arena, streamed, &flash, HTPW_STREAMED);
    FUZZ_CHECK(first == HTPW_OK || (first == HTPW_ERR_FLASH && fake.is_off));
    const int early = htpw_bind_flash(&ctx, model, backend, small, installed, &flash, HTPW_INSTALLED);
    FUZZ_CHECK(early == HTPW_OK || (first != HTPW_OK && early == HTPW_ERR_STORE));
    if (early == HTPW_OK) { /* also if the power failed behind the last byte of the record */
        fuzz_collect(&ctx, &plan, seed, 1, result);
    }
    htpw_fake_flash_power(&fake, HTPW_FAKE_FLASH_NO_CUT);
    FUZZ_CHECK(htpw_bind_flash(&ctx, model, backend, arena, streamed, &flash, HTPW_STREAMED) == HTPW_OK);
    FUZZ_CHECK(early != HTPW_OK || fake.operations == 0);
    fuzz_collect(&ctx, &plan, seed, 1, result);
    fuzz_forbid(model, 1);
    FUZZ_CHECK(htpw_bind_flash(&ctx, model, backend, small, installed, &flash, HTPW_INSTALLED) == HTPW_OK);
    fuzz_collect(&ctx, &plan, seed, 1, result);
    FUZZ_CHECK(fake.violations == 0);
    free(arena);
    free(small);
    free(memory);
    free(page);
}

/* The n-th backend that runs here, in turn. */
static int fuzz_backend(uint32_t n) {
    int available[HTPW_BACKEND_COUNT];
    uint32_t count = 0;
    for (int i = HTPW_BACKEND_PORTABLE; i < HTPW_BACKEND_COUNT; i++) {
        if (htpw_backend_is_available(i)) {
            available[count++] = i;
        }
    }
    return available[n % count];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct htpw_model model;
    struct htpw_plan plan;
    if (size < FUZZ_CONTROL) {
        return 0;
    }
    const size_t length = size - FUZZ_CONTROL;
    uint8_t *image = fuzz_alloc(length);
    memcpy(image, data + FUZZ_CONTROL, length);
    const int error = htpw_model_open(&model, image, length);
    FUZZ_CHECK(error <= 0 && (error == HTPW_OK) == (model.image != NULL));
    if (error == HTPW_OK) {
        uint32_t memory = 0;
        for (int i = HTPW_BACKEND_BEST; i < HTPW_BACKEND_COUNT; i++) {
            const int planned = htpw_plan_memory(&model, i, &plan);
            FUZZ_CHECK(planned == HTPW_OK || planned == HTPW_ERR_CACHE); /* layouts that fill up may take a cache beyond 2^30 */
            const uint32_t needed = planned == HTPW_OK ? plan.streamed_arena_bytes + plan.cache_bytes : UINT32_MAX;
            memory = needed > memory ? needed : memory;
        }
        if (memory <= FUZZ_MEMORY_MAX && fuzz_cost(&model) <= FUZZ_COST_MAX) {
            struct fuzz_result result = {NULL, 0, 0};
            const uint32_t seed = htpw_load_u16(data + 6);
            const int backends[3] = {HTPW_BACKEND_PORTABLE, HTPW_BACKEND_BEST, fuzz_backend(data[0])};
            for (int i = 0; i < 3; i++) {
                fuzz_sram(&model, backends[i], HTPW_BOOT, seed, &result);
            }
            fuzz_sram(&model, backends[2], HTPW_LAZY, seed, &result);
            fuzz_store(&model, backends[2], data, seed, &result);
            free(result.bytes);
        }
    }
    free(image);
    return 0;
}

/* ---- mutations ---- */

/* A section, those with more rules in them more often. */
static const char *fuzz_pick(uint32_t r) {
    static const char *const tags[16] = {"OPS ", "OPS ", "OPS ", "OPS ", "OPS ", "HEAD", "HEAD", "HEAD",
                                         "HEAD", "GENR", "GENR", "QUAN", "QUAN", "CODE", "WGHT", "INFO"};
    return tags[r % 16u];
}

static size_t fuzz_control(uint8_t *data, uint32_t *random) {
    const uint32_t at = fuzz_random(random) % FUZZ_CONTROL;
    data[at] = (uint8_t)fuzz_random(random);
    return at;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
    uint32_t random = seed;
    struct fuzz_image parts;
    if (size < FUZZ_CONTROL + 32 || max_size < FUZZ_CONTROL + 512) {
        return LLVMFuzzerMutate(data, size, max_size);
    }
    uint8_t *image = data + FUZZ_CONTROL;
    const size_t length = size - FUZZ_CONTROL, max = max_size - FUZZ_CONTROL;
    const uint32_t what = fuzz_random(&random) % 32u;
    if (what < 2) { /* damage */
        return FUZZ_CONTROL + LLVMFuzzerMutate(image, length, max);
    }
    if (what < 5) { /* header and table under right checksums; now and then right padding, too */
        const size_t now = LLVMFuzzerMutate(image, length, max);
        fuzz_image_checksums(image, now);
        return FUZZ_CONTROL + (what == 4 ? fuzz_image_mend(image, now, max, random) : now);
    }
    if (what < 8) {
        (void)fuzz_control(data, &random);
        return size;
    }
    size_t joined = 0;
    if (fuzz_image_split(&parts, image, length)) {
        for (uint32_t n = 1 + fuzz_random(&random) % 3u; n > 0; n--) {
            struct fuzz_section *s = fuzz_image_section(&parts, fuzz_pick(fuzz_random(&random)));
            if (s != NULL && fuzz_random(&random) % 64u != 0) {
                s->length = (uint32_t)LLVMFuzzerMutate(s->data, s->length, FUZZ_PAYLOAD);
            } else if (s != NULL) {
                s->length = 0;
            }
        }
        if (what != 8) {
            fuzz_image_repair(&parts, random);
        }
        joined = fuzz_image_join(&parts, image, max);
    }
    fuzz_image_free(&parts);
    return joined != 0 ? FUZZ_CONTROL + joined : LLVMFuzzerMutate(data, size, max_size);
}

/* Sections of the one, some exchanged for those of the other. */
size_t LLVMFuzzerCustomCrossOver(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size, uint8_t *out, size_t out_max,
                                 unsigned int seed) {
    uint32_t random = seed;
    struct fuzz_image first, second;
    size_t joined = 0;
    if (a_size < FUZZ_CONTROL || b_size < FUZZ_CONTROL || out_max < FUZZ_CONTROL) {
        return 0;
    }
    memcpy(out, a, FUZZ_CONTROL);
    const int split_a = fuzz_image_split(&first, a + FUZZ_CONTROL, a_size - FUZZ_CONTROL);
    const int split_b = fuzz_image_split(&second, b + FUZZ_CONTROL, b_size - FUZZ_CONTROL);
    if (split_a && split_b) {
        for (uint32_t i = 0; i < second.count; i++) {
            char tag[5] = {0};
            memcpy(tag, second.section[i].tag, 4);
            struct fuzz_section *s = fuzz_random(&random) % 3u == 0 ? fuzz_image_section(&first, tag) : NULL;
            if (s != NULL) {
                memcpy(s->data, second.section[i].data, second.section[i].length);
                s->length = second.section[i].length;
            }
        }
        fuzz_image_repair(&first, random);
        joined = fuzz_image_join(&first, out + FUZZ_CONTROL, out_max - FUZZ_CONTROL);
    }
    fuzz_image_free(&first);
    fuzz_image_free(&second);
    return joined != 0 ? FUZZ_CONTROL + joined : 0;
}
