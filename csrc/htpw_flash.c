/* The kernel store in flash: schedules streamed and installed (docs/SPEC.md 9).
 *
 * Filling it is idempotent, which is all that surviving a power cut takes: every page is compared with what it must hold. A page that
 * holds it is left, an erased one is programmed; anything else can only be undone by erasing, and then the pass begins again, over
 * a region that is right up to there and erased behind. The record that declares the store good is written last.
 */
#include "htpw_flash.h"

enum { HTPW_RECORD_BYTES = 32, HTPW_RECORD_VERSION = 1 };

int htpw_flash_is_valid(const struct htpw_flash *f) {
    return f != NULL && f->base != NULL && f->page != NULL && f->erase != NULL && f->program != NULL &&
           (uintptr_t)f->base % 4 == 0 && (uintptr_t)f->page % 4 == 0 && f->page_bytes != 0 && f->page_bytes % 4 == 0 &&
           f->erase_bytes != 0 && f->erase_bytes % f->page_bytes == 0 && f->bytes % f->erase_bytes == 0 &&
           f->bytes != 0;
}

static int htpw_is_erased(const uint8_t *p, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        if (p[i] != 0xFF) {
            return 0;
        }
    }
    return 1;
}

static int htpw_is_equal(const uint8_t *a, const uint8_t *b, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        if (a[i] != b[i]) {
            return 0;
        }
    }
    return 1;
}

int htpw_flash_erase(const struct htpw_flash *f, uint32_t from, uint32_t to) {
    for (uint32_t at = from - from % f->erase_bytes; at < to; at += f->erase_bytes) {
        if (!htpw_is_erased(f->base + at, f->erase_bytes) &&
            (f->erase(f->user, at) != 0 || !htpw_is_erased(f->base + at, f->erase_bytes))) {
            return HTPW_ERR_FLASH;
        }
    }
    return HTPW_OK;
}

int htpw_flash_program(const struct htpw_flash *f, uint32_t at) {
    return f->program(f->user, at, f->page) == 0 && htpw_is_equal(f->base + at, f->page, f->page_bytes)
               ? HTPW_OK
               : HTPW_ERR_FLASH;
}

static uint32_t htpw_round_up(uint32_t n, uint32_t unit) { return (n + unit - 1u) / unit * unit; }

uint32_t htpw_flash_bytes(const struct htpw_plan *plan, const struct htpw_flash *flash) {
    if (plan == NULL || flash == NULL || flash->page_bytes == 0 || flash->page_bytes % 4 != 0 ||
        flash->page_bytes > HTPW_FLASH_UNIT_MAX || flash->erase_bytes < flash->page_bytes ||
        flash->erase_bytes % flash->page_bytes != 0 || flash->erase_bytes > HTPW_FLASH_UNIT_MAX) {
        return 0;
    }
    const uint32_t head = htpw_round_up(HTPW_RECORD_BYTES, flash->page_bytes);
    return htpw_round_up(head + plan->cache_bytes, flash->erase_bytes); /* cache_bytes <= 2^30 */
}

/* What the record of a right store holds, but for the CRC of the kernels. */
static void htpw_record_make(const struct htpw_context *ctx, uint32_t kernel_bytes, uint32_t kernel_crc,
                             uint8_t *record) {
    const struct htpw_model *m = ctx->model;
    const uint32_t words[6] = {m->image_bytes, htpw_load_u32(m->image + 12), m->pack_crc, kernel_bytes, kernel_crc, 0};
    record[0] = 'H';
    record[1] = 'T';
    record[2] = 'P';
    record[3] = 'K';
    record[4] = HTPW_RECORD_VERSION;
    record[5] = (uint8_t)ctx->backend->id;
    record[6] = (uint8_t)m->cached_count;
    record[7] = (uint8_t)(m->cached_count >> 8);
    for (uint32_t i = 0; i < 6; i++) {
        htpw_store_u32(record + 8u + 4u * i, i < 5 ? words[i] : htpw_crc32(0, record, 28));
    }
}

/* 1 if the store is there and right. Reads the image's header, the record and the kernels; nothing of the generator. */
static int htpw_store_is_right(const struct htpw_context *ctx, const struct htpw_flash *f, uint32_t first,
                               uint32_t bytes) {
    uint8_t record[HTPW_RECORD_BYTES];
    htpw_record_make(ctx, bytes, htpw_load_u32(f->base + 24), record);
    return htpw_is_equal(f->base, record, HTPW_RECORD_BYTES) &&
           htpw_crc32(0, f->base + first, bytes) == htpw_load_u32(record + 24);
}

/* Bytes on their way to flash, page by page. */
struct htpw_pages {
    const struct htpw_flash *flash;
    uint32_t at;     /* of the page being filled */
    uint32_t filled; /* bytes in it */
    uint32_t dirty;  /* where a page holds neither what it should nor nothing; 0 if nowhere */
};

static int htpw_pages_flush(struct htpw_pages *pages) {
    const struct htpw_flash *f = pages->flash;
    for (; pages->filled < f->page_bytes; pages->filled++) {
        f->page[pages->filled] = 0xFF;
    }
    const uint8_t *there = f->base + pages->at;
    int error = HTPW_OK;
    if (!htpw_is_equal(there, f->page, f->page_bytes)) {
        if (htpw_is_erased(there, f->page_bytes)) {
            error = htpw_flash_program(f, pages->at);
        } else {
            pages->dirty = pages->at;
        }
    }
    pages->at += f->page_bytes;
    pages->filled = 0;
    return error;
}

static int htpw_pages_put(struct htpw_pages *pages, const uint8_t *data, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        pages->flash->page[pages->filled++] = data[i];
        if (pages->filled == pages->flash->page_bytes) {
            const int error = htpw_pages_flush(pages);
            if (error != HTPW_OK || pages->dirty != 0) {
                return error;
            }
        }
    }
    return HTPW_OK;
}

/* One pass: makes kernel after kernel in the arena and writes it. Ends early, without an error, at a dirty page. */
static int htpw_store_pass(struct htpw_context *ctx, struct htpw_pages *pages) {
    const struct htpw_backend_rule *rule = htpw_backend_rule(ctx->backend->id);
    struct htpw_cursor cursor;
    struct htpw_synth s;
    struct htpw_op op;
    uint32_t largest = 0;
    s.made_for = HTPW_SYNTH_NONE;
    int result = htpw_cursor_start(ctx->model, rule, HTPW_WALK_RUN, &cursor);
    while (result >= 0 && (result = htpw_cursor_next(ctx->model, &cursor, &op)) > 0) {
        const uint32_t bytes = op.is_cached ? htpw_round16(htpw_kernel_bytes(rule, &op)) : 0u;
        largest = bytes > largest ? bytes : largest;
    }
    result = htpw_cursor_start(ctx->model, rule, HTPW_WALK_SYNTHESIS, &cursor);
    while (result >= 0 && pages->dirty == 0 && (result = htpw_cursor_next(ctx->model, &cursor, &op)) > 0) {
        if (op.is_cached) {
            const uint32_t room = htpw_round16(htpw_kernel_bytes(rule, &op));
            htpw_zero(ctx->arena, room); /* bytes that only fill up must be the same every time */
            htpw_synth_kernel(ctx->model, ctx->backend, &op, &s, ctx->arena + largest, ctx->arena);
            result = htpw_pages_put(pages, ctx->arena, room);
        }
    }
    if (result >= 0 && pages->dirty == 0 && pages->filled != 0) {
        result = htpw_pages_flush(pages);
    }
    return result < 0 ? result : HTPW_OK;
}

static int htpw_store_fill(struct htpw_context *ctx, const struct htpw_flash *f, uint32_t first, uint32_t bytes) {
    struct htpw_pages pages = {f, first, 0, 0};
    int error = HTPW_OK;
    if (!htpw_is_erased(f->base, first)) { /* the record of another store, or half a one */
        error = htpw_flash_erase(f, 0, first); /* it may span erase blocks */
    }
    error = error == HTPW_OK ? htpw_store_pass(ctx, &pages) : error;
    if (error == HTPW_OK && pages.dirty != 0) {
        error = htpw_flash_erase(f, pages.dirty, f->bytes);
        pages = (struct htpw_pages){f, first, 0, 0};
        error = error == HTPW_OK ? htpw_store_pass(ctx, &pages) : error;
        if (error == HTPW_OK && pages.dirty != 0) {
            error = HTPW_ERR_FLASH; /* an erased page does not stay erased */
        }
    }
    if (error != HTPW_OK) {
        return error;
    }
    uint8_t record[HTPW_RECORD_BYTES];
    htpw_record_make(ctx, bytes, htpw_crc32(0, f->base + first, bytes), record);
    pages = (struct htpw_pages){f, 0, 0, 0};
    error = htpw_pages_put(&pages, record, HTPW_RECORD_BYTES);
    error = error == HTPW_OK && pages.filled != 0 ? htpw_pages_flush(&pages) : error;
    return error == HTPW_OK && !htpw_store_is_right(ctx, f, first, bytes) ? HTPW_ERR_FLASH : error;
}

int htpw_bind_flash(struct htpw_context *ctx, const struct htpw_model *model, int backend, void *arena,
                    size_t arena_bytes, const struct htpw_flash *flash, int schedule) {
    struct htpw_context bound;
    struct htpw_plan plan;
    const int is_installed = schedule == HTPW_INSTALLED;
    int error =
        htpw_bind_common(&bound, model, backend, arena, is_installed ? HTPW_WALK_RUN : HTPW_WALK_SYNTHESIS, &plan);
    if (error != HTPW_OK) {
        return error;
    }
    if (ctx == NULL || (schedule != HTPW_STREAMED && !is_installed)) {
        return HTPW_ERR_ARGUMENT;
    }
    const uint32_t needed = htpw_flash_bytes(&plan, flash);
    if (!htpw_flash_is_valid(flash) || needed == 0 || flash->bytes < needed) {
        return HTPW_ERR_FLASH;
    }
    if (arena_bytes < (is_installed ? plan.installed_arena_bytes : plan.streamed_arena_bytes)) {
        return HTPW_ERR_ARENA;
    }
    const uint32_t first = htpw_round_up(HTPW_RECORD_BYTES, flash->page_bytes);
    if (!htpw_store_is_right(&bound, flash, first, plan.cache_bytes)) {
        error = is_installed ? HTPW_ERR_STORE : htpw_store_fill(&bound, flash, first, plan.cache_bytes);
    }
    if (error == HTPW_OK) {
        bound.kernels = flash->base + first;
        for (uint32_t i = 0; i < sizeof bound.ready; i++) {
            bound.ready[i] = 0xFF;
        }
        *ctx = bound;
    }
    return error;
}
