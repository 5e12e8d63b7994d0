/* Repairs, so that mutations reach the deep checks and the kernels instead of ending at a checksum. The lengths that OPS asks for are not
 * computed a second time here: the library's own decoder walks the operators over sections of zeros and says what it consumed. */
#include <string.h>

#include "fuzz.h"

static void fuzz_store_u32(uint8_t *p, uint32_t v) {
    for (uint32_t i = 0; i < 4; i++) {
        p[i] = (uint8_t)(v >> (8u * i));
    }
}

int fuzz_image_split(struct fuzz_image *parts, const uint8_t *image, size_t size) {
    memset(parts, 0, sizeof *parts);
    if (size < 32) {
        return 0;
    }
    uint32_t count = image[6];
    count = count > FUZZ_SECTIONS ? FUZZ_SECTIONS : count;
    count = count > (size - 16) / 16 ? (uint32_t)((size - 16) / 16) : count;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *entry = image + 16 + 16u * i;
        struct fuzz_section *s = &parts->section[i];
        uint32_t offset = htpw_load_u32(entry + 4), length = htpw_load_u32(entry + 8);
        offset = offset > size ? (uint32_t)size : offset;
        length = length > size - offset ? (uint32_t)(size - offset) : length;
        length = length > FUZZ_PAYLOAD ? FUZZ_PAYLOAD : length;
        memcpy(s->tag, entry, 4);
        s->data = fuzz_alloc(FUZZ_PAYLOAD);
        memcpy(s->data, image + offset, length);
        s->length = length;
    }
    parts->count = count;
    return count != 0;
}

size_t fuzz_image_join(const struct fuzz_image *parts, uint8_t *image, size_t max) {
    size_t end = 16 + 16u * parts->count;
    for (uint32_t i = 0; i < parts->count; i++) {
        end = ((end + 15) & ~(size_t)15) + parts->section[i].length;
    }
    const size_t total = (end + 15) & ~(size_t)15;
    if (total > max) {
        return 0;
    }
    memset(image, 0, total);
    memcpy(image, "HTPW", 4);
    image[4] = HTPW_FORMAT_VERSION;
    image[5] = HTPW_ROUNDING_CMSIS_NN;
    image[6] = (uint8_t)parts->count;
    fuzz_store_u32(image + 8, (uint32_t)total);
    end = 16 + 16u * parts->count;
    for (uint32_t i = 0; i < parts->count; i++) {
        const struct fuzz_section *s = &parts->section[i];
        uint8_t *entry = image + 16 + 16u * i;
        end = (end + 15) & ~(size_t)15;
        memcpy(entry, s->tag, 4);
        fuzz_store_u32(entry + 4, (uint32_t)end);
        fuzz_store_u32(entry + 8, s->length);
        memcpy(image + end, s->data, s->length);
        end += s->length;
    }
    fuzz_image_checksums(image, total);
    return total;
}

void fuzz_image_free(struct fuzz_image *parts) {
    for (uint32_t i = 0; i < parts->count; i++) {
        free(parts->section[i].data);
    }
}

void fuzz_image_checksums(uint8_t *image, size_t size) {
    if (size < 16) {
        return;
    }
    const size_t table = 16u * image[6];
    if (size - 16 < table) {
        return;
    }
    for (size_t i = 16; i < 16 + table; i += 16) {
        const uint32_t offset = htpw_load_u32(image + i + 4), length = htpw_load_u32(image + i + 8);
        if (offset <= size && length <= size - offset) {
            fuzz_store_u32(image + i + 12, htpw_crc32(0, image + offset, length));
        }
    }
    fuzz_store_u32(image + 12, htpw_crc32(htpw_crc32(0, image, 12), image + 16, table));
}

/* Where a tag stands in the file; unknown ones nowhere. */
static int fuzz_rank(const uint8_t *tag) {
    static const char order[] = "INFOOPS QUANWGHTGENRHEADCODE";
    for (int i = 0; i < 7; i++) {
        if (memcmp(tag, order + 4 * i, 4) == 0) {
            return i;
        }
    }
    return -1;
}

struct fuzz_section *fuzz_image_section(struct fuzz_image *parts, const char *tag) {
    const int rank = fuzz_rank((const uint8_t *)tag);
    uint32_t at = 0;
    for (uint32_t i = 0; i < parts->count; i++) {
        if (memcmp(parts->section[i].tag, tag, 4) == 0) {
            return &parts->section[i];
        }
        at = fuzz_rank(parts->section[i].tag) < rank ? i + 1u : at;
    }
    if (parts->count == FUZZ_SECTIONS) {
        return NULL;
    }
    memmove(&parts->section[at + 1u], &parts->section[at], (parts->count - at) * sizeof parts->section[0]);
    parts->count++;
    memcpy(parts->section[at].tag, tag, 4);
    parts->section[at].data = fuzz_alloc(FUZZ_PAYLOAD);
    parts->section[at].length = 0;
    return &parts->section[at];
}

/* ---- values ---- */

static void fuzz_tail(uint8_t *stream, uint32_t count, uint32_t bits) {
    const uint32_t used = count * bits & 7u;
    if (used != 0) {
        stream[count * bits / 8u] = (uint8_t)(stream[count * bits / 8u] & ((1u << used) - 1u));
    }
}

static void fuzz_bits_put(uint8_t *stream, uint32_t index, uint32_t bits, uint32_t value) {
    for (uint32_t i = 0; i < bits; i++) {
        const uint32_t at = index * bits + i, mask = 1u << at % 8u;
        stream[at / 8u] = (uint8_t)((value >> i & 1u) != 0 ? stream[at / 8u] | mask : stream[at / 8u] & ~mask);
    }
}

void fuzz_quan_repair(const struct htpw_op *op, uint8_t *multipliers, uint8_t *shifts, uint8_t *biases) {
    const struct htpw_quant_view *q = &op->quant;
    for (uint32_t i = 0; i < q->count && q->form != 1; i++) {
        uint8_t *top = multipliers + (q->form == 0 ? 2u * i + 1u : 4u * i + 3u);
        *top &= 0x7Fu;
    }
    fuzz_tail(shifts, q->count, q->shift_bits);
    fuzz_tail(biases, q->channels, q->bias_bits);
}

void fuzz_codes_repair(const struct htpw_model *model, const struct htpw_op *op, uint8_t *codes) {
    struct htpw_head head;
    fuzz_tail(codes, op->code_count, op->code_bits);
    if (htpw_head_load(model, op->head, &head) == HTPW_OK && head.entries != 0) {
        for (uint32_t i = 0; i < op->code_count; i++) {
            const uint32_t id = htpw_bits_unsigned(codes, i, op->code_bits);
            if (id >= head.entries) {
                fuzz_bits_put(codes, i, op->code_bits, id % head.entries);
            }
        }
    }
}

static void fuzz_matrix_repair(const struct htpw_matrix *m) {
    if (m->weights != NULL && m->seed == 0) { /* they lie in payloads that are ours to change */
        fuzz_tail((uint8_t *)(uintptr_t)m->weights, (uint32_t)m->rows * m->cols, m->weight_bits);
        fuzz_tail((uint8_t *)(uintptr_t)m->biases, m->rows, m->bias_bits);
    }
}

static void fuzz_heads_repair(const struct htpw_model *model) {
    struct htpw_generator g;
    struct htpw_head head;
    for (uint32_t i = 0; htpw_generator_load(model, i, &g) == HTPW_OK; i++) {
        for (uint32_t k = 0; k < g.layers; k++) {
            fuzz_matrix_repair(&g.layer[k]);
        }
    }
    for (uint32_t i = 0; htpw_head_load(model, i, &head) == HTPW_OK; i++) {
        for (uint32_t k = 0; k < head.stages; k++) {
            fuzz_matrix_repair(&head.stage[k]);
        }
        if (head.table != NULL && head.stages == 0) {
            fuzz_tail((uint8_t *)(uintptr_t)head.table, head.entries * head.tile, head.entry_bits);
        } else if (head.table != NULL && htpw_generator_load(model, head.generator, &g) == HTPW_OK) {
            fuzz_tail((uint8_t *)(uintptr_t)head.table, (uint32_t)head.entries * g.dz, head.entry_bits);
        }
    }
}

/* ---- lengths ---- */

/* OPS ends behind its last whole record; the header says how many there are. */
static void fuzz_count_repair(struct fuzz_section *ops) {
    static const uint8_t bytes[8] = {0, 26, 24, 12, 12, 22, 18, 18};
    uint32_t at = 8, count = 0;
    while (at < ops->length && count < 255) {
        const uint32_t kind = ops->data[at];
        if (kind == 0 || kind > 7 || bytes[kind] > ops->length - at) {
            break;
        }
        at += bytes[kind];
        count++;
    }
    if (count != 0) {
        ops->data[7] = (uint8_t)count;
        ops->length = at;
    }
}

static void fuzz_resize(struct fuzz_section *s, uint32_t length, uint32_t *random) {
    for (uint32_t i = s->length; i < length && i < FUZZ_PAYLOAD; i++) {
        s->data[i] = (uint8_t)fuzz_random(random);
    }
    s->length = length < FUZZ_PAYLOAD ? length : FUZZ_PAYLOAD;
}

static struct htpw_span fuzz_span(const struct fuzz_section *s) {
    const struct htpw_span span = {s->data, s->length};
    return span;
}

void fuzz_image_repair(struct fuzz_image *parts, uint32_t seed) {
    static const uint8_t nothing[FUZZ_PAYLOAD]; /* skipped bytes of WGHT must be 0, and are looked at */
    static const char *const tags[6] = {"OPS ", "QUAN", "WGHT", "GENR", "HEAD", "CODE"};
    struct fuzz_section *s[6];
    struct htpw_model model;
    struct htpw_cursor cursor;
    struct htpw_op op;
    for (int i = 0; i < 6; i++) {
        if (fuzz_image_section(parts, tags[i]) == NULL) {
            return;
        }
    }
    for (int i = 0; i < 6; i++) { /* after all of them are there, since making one moves the others */
        s[i] = fuzz_image_section(parts, tags[i]);
    }
    if (s[0]->length < 8) {
        return;
    }
    fuzz_count_repair(s[0]);
    memset(&model, 0, sizeof model);
    model.ops = fuzz_span(s[0]);
    model.operator_count = s[0]->data[7];
    model.generators = fuzz_span(s[3]);
    model.heads = fuzz_span(s[4]);
    model.pack.data = nothing;
    fuzz_heads_repair(&model);
    model.quant.data = model.weights.data = model.codes.data = nothing;
    model.quant.length = model.weights.length = model.codes.length = FUZZ_PAYLOAD;
    const struct htpw_backend_rule *rule = htpw_backend_rule(HTPW_BACKEND_PORTABLE);
    int result = htpw_cursor_start(&model, rule, HTPW_WALK_SYNTHESIS, &cursor);
    while (result >= 0 && (result = htpw_cursor_next(&model, &cursor, &op)) > 0) {
    }
    if (result != 0) {
        return; /* refused in any case, by the rule that the mutation was lucky to break */
    }
    fuzz_resize(s[1], cursor.quant, &seed);
    fuzz_resize(s[2], cursor.weights, &seed);
    fuzz_resize(s[5], cursor.codes, &seed);
    model.quant = fuzz_span(s[1]);
    model.codes = fuzz_span(s[5]);
    result = htpw_cursor_start(&model, rule, HTPW_WALK_SYNTHESIS, &cursor);
    for (;;) {
        const uint32_t weights = cursor.weights;
        result = htpw_cursor_next(&model, &cursor, &op);
        if (result <= 0) {
            break;
        }
        if (op.weight_count == 0) {
            continue;
        }
        const struct htpw_quant_view *q = &op.quant;
        fuzz_quan_repair(&op, (uint8_t *)(uintptr_t)q->multipliers, (uint8_t *)(uintptr_t)q->shifts, (uint8_t *)(uintptr_t)q->biases);
        if (op.codes != NULL) {
            fuzz_codes_repair(&model, &op, (uint8_t *)(uintptr_t)op.codes);
        } else {
            const uint32_t start = (uint32_t)(op.weights - nothing);
            memset(s[2]->data + weights, 0, start - weights);
            fuzz_tail(s[2]->data + start, op.weight_count, op.weight_bits);
        }
    }
}

size_t fuzz_image_mend(uint8_t *image, size_t size, size_t max, uint32_t seed) {
    struct fuzz_image parts;
    size_t done = 0;
    if (fuzz_image_split(&parts, image, size)) {
        fuzz_image_repair(&parts, seed);
        done = fuzz_image_join(&parts, image, max);
    }
    fuzz_image_free(&parts);
    return done != 0 ? done : size;
}

/* ---- cost ---- */

/* Of making the kernel of an operator with codes. */
static uint64_t fuzz_synthesis_cost(const struct htpw_model *model, const struct htpw_op *op) {
    struct htpw_head head;
    struct htpw_generator g;
    uint64_t one = 1;
    if (htpw_head_load(model, op->head, &head) != HTPW_OK) {
        return 0;
    }
    if (head.stages != 0 && htpw_generator_load(model, head.generator, &g) == HTPW_OK) {
        for (uint32_t i = 0; i < g.layers; i++) {
            one += (uint64_t)g.layer[i].rows * g.layer[i].cols;
        }
    }
    for (uint32_t i = 0; i < head.stages; i++) {
        one += (uint64_t)head.stage[i].rows * head.stage[i].cols;
    }
    return (one + head.tile) * ((op->weight_count + head.tile - 1u) / head.tile);
}

uint64_t fuzz_cost(const struct htpw_model *model) {
    struct htpw_cursor cursor;
    struct htpw_op op;
    uint64_t cost = model->input_bytes;
    int result = htpw_cursor_start(model, htpw_backend_rule(HTPW_BACKEND_PORTABLE), HTPW_WALK_SYNTHESIS, &cursor);
    while (result >= 0 && (result = htpw_cursor_next(model, &cursor, &op)) > 0) {
        const uint64_t cells = (uint64_t)op.out.h * op.out.w;
        const struct htpw_window *g = &op.window;
        if (op.weight_count != 0) {
            cost += op.weight_count * cells + (op.codes != NULL ? fuzz_synthesis_cost(model, &op) : op.weight_count);
        } else if (op.kind != HTPW_OP_AVGPOOL && op.kind != HTPW_OP_MAXPOOL) {
            cost += (uint64_t)op.in.h * op.in.w * ((uint64_t)op.in.c + 64u * (op.kind == HTPW_OP_ATTEND)); /* exponentials */
        } else {
            const uint64_t h = (uint64_t)(g->k_h < g->in_h ? g->k_h : g->in_h), w = (uint64_t)(g->k_w < g->in_w ? g->k_w : g->in_w);
            cost += cells * op.out.c * h * w;
        }
    }
    return cost;
}

uint64_t fuzz_image_cost(const uint8_t *image, size_t size) {
    struct htpw_model model;
    return htpw_model_open(&model, image, size) == HTPW_OK ? fuzz_cost(&model) : UINT64_MAX;
}
