/* fuzz_codes - any bytes as a code pack for one image: apply, then bind and run; store, boot and roll back in flash with power cuts.
 *
 * Input: FUZZ_CONTROL bytes of choices, then the pack. Findings besides memory errors: a refused pack that leaves a trace in the model,
 * schedules or backends that differ, a slot or kernel store that a power cut spoils, and a pack that the slots judge otherwise than apply does.
 */
#include <string.h>

#include "base.h"
#include "fuzz.h"
#include "htpw_flash.h"
#include "ports/htpw_fake_flash.h"

#define FUZZ_HEADER 52u
#define FUZZ_PARTS 128u
#define FUZZ_KNOWN_NUMBER 5u /* of the pack that is in a slot before */

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What a pack may replace: the parts of the base image, in a pack's order. */
struct fuzz_part {
    uint8_t op, part;
    uint32_t length;
    const uint8_t *bytes;
    struct htpw_op of;
};
static struct fuzz_part fuzz_parts[FUZZ_PARTS];
static uint32_t fuzz_part_count;
static struct htpw_model fuzz_model;
static uint8_t fuzz_digest[HTPW_SHA256_BYTES];

static void fuzz_part_add(const struct htpw_op *op, uint32_t part, const uint8_t *bytes, uint32_t length) {
    FUZZ_CHECK(fuzz_part_count < FUZZ_PARTS);
    fuzz_parts[fuzz_part_count++] = (struct fuzz_part){(uint8_t)op->index, (uint8_t)part, length, bytes, *op};
}

static void fuzz_start(void) {
    struct htpw_cursor cursor;
    struct htpw_op op;
    if (fuzz_part_count != 0) {
        return;
    }
    FUZZ_CHECK(htpw_model_open(&fuzz_model, fuzz_base.bytes, sizeof fuzz_base.bytes) == HTPW_OK);
    htpw_sha256(fuzz_base.bytes, sizeof fuzz_base.bytes, fuzz_digest);
    FUZZ_CHECK(htpw_cursor_start(&fuzz_model, htpw_backend_rule(HTPW_BACKEND_PORTABLE), HTPW_WALK_SYNTHESIS, &cursor) == HTPW_OK);
    for (;;) {
        const uint32_t quant = cursor.quant, codes = cursor.codes;
        if (htpw_cursor_next(&fuzz_model, &cursor, &op) <= 0) {
            break;
        }
        if (op.codes != NULL) {
            fuzz_part_add(&op, HTPW_PART_CODE, fuzz_model.codes.data + codes, cursor.codes - codes);
        }
        if (op.weight_count != 0) {
            fuzz_part_add(&op, HTPW_PART_QUAN, fuzz_model.quant.data + quant, cursor.quant - quant);
        }
    }
}

/* ---- packs ---- */

static uint32_t fuzz_entry(uint8_t *to, uint32_t op, uint32_t part, const uint8_t *bytes, uint32_t length) {
    const uint32_t room = (length + 3u) & ~UINT32_C(3);
    memset(to, 0, 8u + room);
    to[0] = (uint8_t)op;
    to[1] = (uint8_t)part;
    htpw_store_u32(to + 4, length);
    memcpy(to + 8, bytes, length);
    return 8u + room;
}

static void fuzz_pack_checksum(uint8_t *pack, size_t size) {
    if (size >= FUZZ_HEADER) {
        htpw_store_u32(pack + 48, htpw_crc32(htpw_crc32(0, pack, 48), pack + FUZZ_HEADER, size - FUZZ_HEADER));
    }
}

static size_t fuzz_pack_header(uint8_t *pack, uint32_t entries, uint32_t number, size_t size) {
    memcpy(pack, "HTPC\1\0", 6);
    pack[6] = (uint8_t)entries;
    pack[7] = (uint8_t)(entries >> 8);
    htpw_store_u32(pack + 8, (uint32_t)size);
    htpw_store_u32(pack + 12, number);
    memcpy(pack + 16, fuzz_digest, sizeof fuzz_digest);
    fuzz_pack_checksum(pack, size);
    return size;
}

/* One part of the base image as it is. */
static size_t fuzz_known_pack(uint8_t *pack) {
    const struct fuzz_part *p = &fuzz_parts[0];
    return fuzz_pack_header(pack, 1, FUZZ_KNOWN_NUMBER, FUZZ_HEADER + fuzz_entry(pack + FUZZ_HEADER, p->op, p->part, p->bytes, p->length));
}

/* ---- what must hold ---- */

/* Logits of a bound model; the first ones are kept, later ones are compared with them. */
static void fuzz_compare(struct htpw_context *ctx, const struct htpw_plan *plan, uint32_t seed, uint8_t **kept) {
    int8_t *x = fuzz_alloc(plan->input_bytes), *y = fuzz_alloc(plan->output_bytes);
    for (uint32_t i = 0; i < plan->input_bytes; i++) {
        x[i] = (int8_t)((int32_t)(fuzz_random(&seed) & 255u) - 128);
    }
    FUZZ_CHECK(htpw_run(ctx, x, plan->input_bytes, y, plan->output_bytes) == HTPW_OK);
    free(x);
    if (*kept == NULL) {
        *kept = (uint8_t *)y;
    } else {
        FUZZ_CHECK(memcmp(*kept, y, plan->output_bytes) == 0);
        free(y);
    }
}

static void fuzz_collect(const struct htpw_model *model, int backend, int schedule, uint32_t seed, uint8_t **kept) {
    struct htpw_plan plan;
    struct htpw_context ctx;
    FUZZ_CHECK(htpw_plan_memory(model, backend, &plan) == HTPW_OK);
    uint8_t *arena = fuzz_alloc(plan.arena_bytes), *cache = fuzz_alloc(plan.cache_bytes);
    FUZZ_CHECK(htpw_bind(&ctx, model, backend, arena, plan.arena_bytes, cache, plan.cache_bytes, schedule) == HTPW_OK);
    fuzz_compare(&ctx, &plan, seed, kept);
    free(arena);
    free(cache);
}

/* Kernels in flash: those of the base image, then those of the pack with a power cut; the store is never taken for the other one. */
static void fuzz_store(const struct htpw_model *model, int backend, const uint8_t *control, uint8_t **kept) {
    struct htpw_plan plan;
    struct htpw_context ctx;
    struct htpw_fake_flash fake;
    struct htpw_flash flash;
    const uint32_t page_bytes = UINT32_C(8) << (control[2] & 7u), erase_bytes = page_bytes * (1u + (control[2] >> 3 & 7u));
    const struct htpw_flash geometry = {.page_bytes = page_bytes, .erase_bytes = erase_bytes};
    FUZZ_CHECK(htpw_plan_memory(model, backend, &plan) == HTPW_OK);
    const uint32_t bytes = htpw_flash_bytes(&plan, &geometry);
    uint8_t *arena = fuzz_alloc(plan.streamed_arena_bytes), *memory = fuzz_alloc(bytes), *page = fuzz_alloc(page_bytes);
    memset(memory, 0xFF, bytes);
    htpw_fake_flash_open(&fake, memory, bytes, page_bytes, erase_bytes, page, &flash);
    const size_t room = plan.streamed_arena_bytes;
    FUZZ_CHECK(htpw_bind_flash(&ctx, &fuzz_model, backend, arena, room, &flash, HTPW_STREAMED) == HTPW_OK);
    FUZZ_CHECK(htpw_bind_flash(&ctx, model, backend, arena, room, &flash, HTPW_INSTALLED) == HTPW_ERR_STORE || model->pack_crc == 0);
    htpw_fake_flash_power(&fake, control[5]);
    (void)htpw_bind_flash(&ctx, model, backend, arena, room, &flash, HTPW_STREAMED);
    htpw_fake_flash_power(&fake, HTPW_FAKE_FLASH_NO_CUT);
    FUZZ_CHECK(htpw_bind_flash(&ctx, model, backend, arena, room, &flash, HTPW_STREAMED) == HTPW_OK);
    fuzz_compare(&ctx, &plan, control[1], kept);
    FUZZ_CHECK(htpw_bind_flash(&ctx, model, backend, arena, room, &flash, HTPW_INSTALLED) == HTPW_OK);
    fuzz_compare(&ctx, &plan, control[1], kept);
    FUZZ_CHECK(fake.violations == 0);
    free(arena);
    free(memory);
    free(page);
}

/* Applies, runs, and returns what apply said. */
static int fuzz_apply(const uint8_t *pack, size_t length, const uint8_t *control) {
    struct htpw_model model = fuzz_model, before = fuzz_model;
    const int error = htpw_codes_apply(&model, pack, length);
    if (error != HTPW_OK) {
        FUZZ_CHECK(memcmp(&model, &before, sizeof model) == 0);
        return error;
    }
    uint8_t *logits = NULL;
    const int backend = (control[0] & 1u) != 0 ? HTPW_BACKEND_BEST : HTPW_BACKEND_PORTABLE;
    fuzz_collect(&model, HTPW_BACKEND_PORTABLE, HTPW_BOOT, control[1], &logits);
    fuzz_collect(&model, backend, HTPW_LAZY, control[1], &logits);
    fuzz_store(&model, backend, control, &logits);
    free(logits);
    before = model;
    FUZZ_CHECK(htpw_codes_apply(&model, pack, length) == HTPW_OK); /* an equal number is not lower */
    FUZZ_CHECK(memcmp(&model, &before, sizeof model) == 0);
    return HTPW_OK;
}

/* The CRC of the pack that a start finds in the slots; 0 if none. */
static uint32_t fuzz_boot(const struct htpw_flash *flash) {
    struct htpw_model model = fuzz_model;
    FUZZ_CHECK(htpw_codes_boot(&model, flash) == HTPW_OK);
    FUZZ_CHECK(model.pack.length != 0 || (model.pack_crc == 0 && model.pack_number == 0));
    return model.pack.length != 0 ? model.pack_crc : 0u;
}

static void fuzz_slots(const uint8_t *pack, size_t length, const uint8_t *control, int applied) {
    struct htpw_fake_flash fake;
    struct htpw_flash flash;
    uint8_t known[512];
    const size_t known_length = fuzz_known_pack(known);
    const uint32_t known_crc = htpw_load_u32(known + 48), crc = length >= FUZZ_HEADER ? htpw_load_u32(pack + 48) : 0u;
    const uint32_t page_bytes = UINT32_C(4) << (control[3] & 7u), erase_bytes = page_bytes * (1u + (control[3] >> 3 & 7u));
    const uint32_t half = (uint32_t)((length > known_length ? length : known_length) + erase_bytes - 1u) / erase_bytes * erase_bytes;
    uint8_t *memory = fuzz_alloc(2u * half), *page = fuzz_alloc(page_bytes);
    uint32_t random = control[6];
    for (uint32_t i = 0; i < 2u * half; i++) {
        memory[i] = (control[4] & 1u) != 0 ? (uint8_t)fuzz_random(&random) : 0xFFu;
    }
    htpw_fake_flash_open(&fake, memory, 2u * half, page_bytes, erase_bytes, page, &flash);
    if ((control[4] & 2u) != 0) { /* as if it had come there by itself: what is refused is not applied at start */
        memcpy(memory, pack, length);
        struct htpw_model model = fuzz_model;
        const uint32_t total = length >= FUZZ_HEADER ? htpw_load_u32(pack + 8) : 0u; /* what follows in the slot is no part of it */
        const int is_pack = total >= FUZZ_HEADER && total <= length && htpw_codes_apply(&model, pack, total) == HTPW_OK;
        FUZZ_CHECK(crc == 0 || is_pack == (fuzz_boot(&flash) == crc));
    }
    const int has_known = htpw_codes_store(&fuzz_model, &flash, known, known_length) == HTPW_OK;
    FUZZ_CHECK(has_known || (control[4] & 2u) != 0);
    const uint32_t before = fuzz_boot(&flash);
    FUZZ_CHECK(!has_known || before == known_crc || before == crc);

    htpw_fake_flash_power(&fake, control[5]);
    const int stored = htpw_codes_store(&fuzz_model, &flash, pack, length);
    FUZZ_CHECK(stored != HTPW_OK || applied == HTPW_OK);
    htpw_fake_flash_power(&fake, HTPW_FAKE_FLASH_NO_CUT);
    const uint32_t after = fuzz_boot(&flash);
    FUZZ_CHECK(after == before || after == crc);
    /* Of two packs with one number the first half's is applied, so only a higher one is sure to be. */
    const int is_higher = stored == HTPW_OK && htpw_load_u32(pack + 12) > FUZZ_KNOWN_NUMBER;
    FUZZ_CHECK(!is_higher || after == crc);

    htpw_fake_flash_power(&fake, control[7]);
    const int rolled = htpw_codes_rollback(&fuzz_model, &flash);
    FUZZ_CHECK(rolled == HTPW_OK || fake.is_off || (rolled == HTPW_ERR_STORE && after == 0));
    htpw_fake_flash_power(&fake, HTPW_FAKE_FLASH_NO_CUT);
    const uint32_t last = fuzz_boot(&flash);
    FUZZ_CHECK(last == 0 || last == after || last == before || last == known_crc || last == crc);
    FUZZ_CHECK(rolled != HTPW_OK || !is_higher || last == before || before == crc);
    FUZZ_CHECK(fake.violations == 0);
    free(memory);
    free(page);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_start();
    if (size < FUZZ_CONTROL) {
        return 0;
    }
    const size_t length = size - FUZZ_CONTROL;
    uint8_t *pack = fuzz_alloc(length);
    memcpy(pack, data + FUZZ_CONTROL, length);
    fuzz_slots(pack, length, data, fuzz_apply(pack, length, data));
    free(pack);
    return 0;
}

/* ---- mutations ---- */

/* The part of an entry; NULL if the base image has none such. */
static const struct fuzz_part *fuzz_part_of(const uint8_t *entry) {
    for (uint32_t i = 0; i < fuzz_part_count; i++) {
        if (fuzz_parts[i].op == entry[0] && fuzz_parts[i].part == entry[1]) {
            return &fuzz_parts[i];
        }
    }
    return NULL;
}

static void fuzz_values_repair(const struct fuzz_part *p, uint8_t *bytes) {
    const struct htpw_quant_view *q = &p->of.quant;
    if (p->part == HTPW_PART_CODE) {
        fuzz_codes_repair(&fuzz_model, &p->of, bytes);
    } else {
        fuzz_quan_repair(&p->of, bytes, bytes + (q->shifts - q->multipliers), bytes + (q->biases - q->multipliers));
    }
}

/* A pack of some parts: those that `old` has with its bytes, others as the base has them, now and then with bytes of chance. */
static size_t fuzz_compose(uint8_t *out, size_t max, const uint8_t *old, size_t old_size, uint32_t number, uint32_t *random) {
    const uint8_t *chosen[FUZZ_PARTS] = {0};
    uint32_t entries = 0;
    size_t end = FUZZ_HEADER;
    for (size_t at = FUZZ_HEADER; old_size >= 8 && at <= old_size - 8;) {
        const struct fuzz_part *p = fuzz_part_of(old + at);
        const uint32_t length = htpw_load_u32(old + at + 4);
        if (p != NULL && p->length <= old_size - at - 8) {
            chosen[p - fuzz_parts] = old + at + 8;
        }
        at += 8u + (size_t)((length + 3u) & ~UINT32_C(3));
    }
    for (uint32_t i = 0; i < fuzz_part_count; i++) {
        const struct fuzz_part *p = &fuzz_parts[i];
        const uint32_t r = fuzz_random(random) % 16u;
        if ((chosen[i] == NULL && r > 1u) || (chosen[i] != NULL && r == 15u) || end + 12u + p->length > max) {
            continue;
        }
        uint8_t *entry = out + end;
        end += fuzz_entry(entry, p->op, p->part, chosen[i] != NULL ? chosen[i] : p->bytes, p->length);
        for (uint32_t k = 0; r == 1u && k < p->length; k++) {
            entry[8u + k] = (uint8_t)fuzz_random(random);
        }
        fuzz_values_repair(p, entry + 8);
        entries++;
    }
    return fuzz_pack_header(out, entries, number, end);
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned int seed) {
    uint32_t random = seed;
    fuzz_start();
    if (size < FUZZ_CONTROL + FUZZ_HEADER + 8 || max_size < FUZZ_CONTROL + 512) {
        return LLVMFuzzerMutate(data, size, max_size);
    }
    uint8_t *pack = data + FUZZ_CONTROL;
    const size_t length = size - FUZZ_CONTROL, max = max_size - FUZZ_CONTROL;
    const uint32_t what = fuzz_random(&random) % 16u;
    if (what == 0) { /* damage */
        return FUZZ_CONTROL + LLVMFuzzerMutate(pack, length, max);
    }
    if (what < 4) {
        data[fuzz_random(&random) % FUZZ_CONTROL] = (uint8_t)fuzz_random(&random);
        return size;
    }
    if (what == 4) { /* another number */
        htpw_store_u32(pack + 12, fuzz_random(&random) % 8u == 0 ? fuzz_random(&random) << 8 : fuzz_random(&random) % 12u);
        fuzz_pack_checksum(pack, length);
        return size;
    }
    if (what < 8) { /* entries under a right header; their own fields are as they come */
        const size_t now = FUZZ_HEADER + LLVMFuzzerMutate(pack + FUZZ_HEADER, length - FUZZ_HEADER, max - FUZZ_HEADER);
        uint32_t entries = htpw_load_u16(pack + 6);
        entries = what == 7 ? entries + 1u : entries;
        (void)fuzz_pack_header(pack, entries, htpw_load_u32(pack + 12), now);
        return FUZZ_CONTROL + now;
    }
    uint8_t *copy = fuzz_alloc(max_size);
    memcpy(copy, pack, length);
    const size_t mutated = what < 12 ? FUZZ_HEADER + LLVMFuzzerMutate(copy + FUZZ_HEADER, length - FUZZ_HEADER, max - FUZZ_HEADER) : length;
    const size_t now = fuzz_compose(pack, max, copy, mutated, htpw_load_u32(copy + 12), &random);
    free(copy);
    return FUZZ_CONTROL + now;
}
