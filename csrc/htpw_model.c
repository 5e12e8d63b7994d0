/* Opening an image: header, sections, then a walk over every operator. Nothing is copied but pointers and a few sizes. */
#include "htpw_internal.h"

enum { HTPW_HEADER_BYTES = 16, HTPW_ENTRY_BYTES = 16, HTPW_SECTIONS_MAX = 16 };
#define HTPW_IMAGE_MAX (UINT32_C(1) << 27)

/* Sections in the order of the file (docs/SPEC.md 4). */
enum htpw_section { HTPW_INFO, HTPW_OPS, HTPW_QUAN, HTPW_WGHT, HTPW_GENR, HTPW_HEAD, HTPW_CODE, HTPW_SECTION_COUNT };
#define HTPW_TAG(a, b, c, d) ((uint32_t)(a) | (uint32_t)(b) << 8 | (uint32_t)(c) << 16 | (uint32_t)(d) << 24)
static const uint32_t htpw_section_tags[HTPW_SECTION_COUNT] = {
    HTPW_TAG('I', 'N', 'F', 'O'), HTPW_TAG('O', 'P', 'S', ' '), HTPW_TAG('Q', 'U', 'A', 'N'),
    HTPW_TAG('W', 'G', 'H', 'T'), HTPW_TAG('G', 'E', 'N', 'R'), HTPW_TAG('H', 'E', 'A', 'D'),
    HTPW_TAG('C', 'O', 'D', 'E')};

static int htpw_is_zero(const uint8_t *p, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        if (p[i] != 0) {
            return 0;
        }
    }
    return 1;
}

static int htpw_tag_index(uint32_t tag) {
    for (int i = 0; i < HTPW_SECTION_COUNT; i++) {
        if (htpw_section_tags[i] == tag) {
            return i;
        }
    }
    return -1;
}

/* Header, section table and section checksums. */
static HTPW_COLD int htpw_open_sections(const uint8_t *image, size_t length, struct htpw_span *sections) {
    if (length < HTPW_HEADER_BYTES) {
        return HTPW_ERR_TRUNCATED;
    }
    if (htpw_load_u32(image) != HTPW_TAG('H', 'T', 'P', 'W')) {
        return HTPW_ERR_MAGIC;
    }
    if (image[4] != HTPW_FORMAT_VERSION || image[5] != HTPW_ROUNDING_CMSIS_NN) {
        return HTPW_ERR_VERSION;
    }
    const uint32_t count = image[6];
    const uint32_t table_bytes = count * HTPW_ENTRY_BYTES;
    if (count == 0 || count > HTPW_SECTIONS_MAX || image[7] != 0) {
        return HTPW_ERR_SECTION;
    }
    if (length < HTPW_HEADER_BYTES + table_bytes) {
        return HTPW_ERR_TRUNCATED;
    }
    const uint32_t crc = htpw_crc32(htpw_crc32(0, image, 12), image + HTPW_HEADER_BYTES, table_bytes);
    if (crc != htpw_load_u32(image + 12)) {
        return HTPW_ERR_HEADER_CRC;
    }
    const uint32_t total = htpw_load_u32(image + 8);
    if (total != length) {
        return total > length ? HTPW_ERR_TRUNCATED : HTPW_ERR_SECTION;
    }
    if (total % 16 != 0 || total > HTPW_IMAGE_MAX) {
        return HTPW_ERR_SECTION;
    }
    uint32_t end = HTPW_HEADER_BYTES + table_bytes;
    int last = -1;
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *entry = image + HTPW_HEADER_BYTES + i * HTPW_ENTRY_BYTES;
        const int tag = htpw_tag_index(htpw_load_u32(entry));
        const uint32_t offset = htpw_load_u32(entry + 4), bytes = htpw_load_u32(entry + 8);
        if (tag <= last || offset != htpw_round16(end) || offset > total || bytes > total - offset ||
            !htpw_is_zero(image + end, offset - end)) {
            return HTPW_ERR_SECTION;
        }
        if (htpw_crc32(0, image + offset, bytes) != htpw_load_u32(entry + 12)) {
            return HTPW_ERR_SECTION_CRC;
        }
        sections[tag].data = image + offset;
        sections[tag].length = bytes;
        last = tag;
        end = offset + bytes;
    }
    return htpw_round16(end) == total && htpw_is_zero(image + end, total - end) ? HTPW_OK : HTPW_ERR_SECTION;
}

/* Codes end in zeros; every id is one of an entry. */
static HTPW_COLD int htpw_codes_check(const struct htpw_model *model, const struct htpw_op *op) {
    struct htpw_head head;
    int error = HTPW_WITH(CODEBOOK) ? htpw_head_load(model, op->head, &head) : HTPW_OK; /* the only one with entries */
    if (error == HTPW_OK && !htpw_bits_tail_is_zero(op->codes, op->code_count, op->code_bits)) {
        error = HTPW_ERR_DATA;
    }
    for (uint32_t i = 0; HTPW_WITH(CODEBOOK) && error == HTPW_OK && head.entries != 0 && i < op->code_count; i++) {
        error = htpw_bits_unsigned(op->codes, i, op->code_bits) < head.entries ? HTPW_OK : HTPW_ERR_RANGE;
    }
    return error;
}

/* The error of a part that the operator needs and this build has not. */
static int htpw_op_left_out(const struct htpw_op *op) {
#define HTPW_EXTRA_CHECK(name, id)                                                                                     \
    if (!HTPW_WITH(name) && htpw_op_needs(op, HTPW_EXTRA_##name)) {                                                    \
        return HTPW_LEFT_OUT_EXTRA(id);                                                                                \
    }
    HTPW_EXTRAS(HTPW_EXTRA_CHECK)
#undef HTPW_EXTRA_CHECK
    (void)op; /* of a build that has everything */
    return HTPW_OK;
}

HTPW_COLD int htpw_operators_check(struct htpw_model *model) {
    struct htpw_cursor cursor;
    struct htpw_op op;
    int result = htpw_cursor_start(model, htpw_backend_rule(HTPW_BACKEND_PORTABLE), HTPW_WALK_SYNTHESIS, &cursor);
    if (result != HTPW_OK) {
        return result;
    }
    model->input_bytes = htpw_tensor_size(&cursor.slot[0]);
    op.out = cursor.slot[0];
    while ((result = htpw_cursor_next(model, &cursor, &op)) > 0) {
        const uint32_t out_bytes = htpw_round16(htpw_tensor_size(&op.out));
        if (out_bytes > model->slot_bytes[op.slot_out]) {
            model->slot_bytes[op.slot_out] = out_bytes;
        }
        const int left_out = htpw_op_left_out(&op);
        if (left_out != HTPW_OK) {
            return left_out;
        }
        if (op.weight_count != 0) { /* a linear operator */
            int error = htpw_quant_check(&op);
            if (error == HTPW_OK && op.codes != NULL) {
                error = htpw_codes_check(model, &op);
            } else if (error == HTPW_OK && !htpw_bits_tail_is_zero(op.weights, op.weight_count, op.weight_bits)) {
                error = HTPW_ERR_DATA;
            }
            if (error != HTPW_OK) {
                return error;
            }
        }
    }
    if (result < 0) {
        return result;
    }
    if (op.out.h != 1 || op.out.w != 1) {
        return HTPW_ERR_SHAPE;
    }
    if (cursor.ops != model->ops.length || cursor.quant != model->quant.length ||
        cursor.weights != model->weights.length || cursor.codes != model->codes.length) {
        return HTPW_ERR_DATA;
    }
    if (HTPW_WITH(PACKS) && cursor.pack != model->pack.length) {
        return HTPW_ERR_PACK; /* an entry out of order, or of no operator or part */
    }
    model->output_bytes = htpw_tensor_size(&op.out);
    model->cached_count = (uint16_t)cursor.layer;
    return HTPW_OK;
}

HTPW_COLD int htpw_model_open(struct htpw_model *model, const void *image, size_t length) {
    static const uint8_t nothing[1] = {0}; /* absent sections point here, so that no pointer is NULL */
    struct htpw_span sections[HTPW_SECTION_COUNT];
    if (model == NULL) {
        return HTPW_ERR_ARGUMENT;
    }
    htpw_zero(model, sizeof *model);
    if (image == NULL) {
        return HTPW_ERR_ARGUMENT;
    }
    if ((uintptr_t)image % 4 != 0) {
        return HTPW_ERR_ALIGNMENT;
    }
    for (int i = 0; i < HTPW_SECTION_COUNT; i++) {
        sections[i].data = nothing;
        sections[i].length = 0;
    }
    int error = htpw_open_sections((const uint8_t *)image, length, sections);
    if (error == HTPW_OK) {
        model->ops = sections[HTPW_OPS];
        model->quant = sections[HTPW_QUAN];
        model->weights = sections[HTPW_WGHT];
        model->codes = sections[HTPW_CODE];
        model->generators = sections[HTPW_GENR];
        model->heads = sections[HTPW_HEAD];
        model->image = (const uint8_t *)image;
        model->image_bytes = (uint32_t)length; /* as its header says */
        if (model->ops.length < 8 || model->ops.data[7] == 0) {
            error = HTPW_ERR_DATA;
        } else {
            model->operator_count = model->ops.data[7];
            error = htpw_heads_check(model);
        }
    }
    if (error == HTPW_OK) {
        error = htpw_operators_check(model);
    }
    if (error != HTPW_OK) {
        htpw_zero(model, sizeof *model);
    }
    return error;
}

HTPW_COLD int htpw_plan(const struct htpw_model *model, int backend, enum htpw_walk walk, struct htpw_plan *plan) {
    const struct htpw_backend_rule *rule = htpw_backend_rule(backend);
    struct htpw_cursor cursor;
    struct htpw_op op;
    if (model == NULL || plan == NULL || model->operator_count == 0) {
        return HTPW_ERR_ARGUMENT;
    }
    if (rule == NULL) {
        return HTPW_ERR_BACKEND;
    }
    uint32_t scratch = 0, kernel = 0, slots = 0;
    int result = htpw_cursor_start(model, rule, HTPW_WALK_RUN, &cursor);
    while (result >= 0 && (result = htpw_cursor_next(model, &cursor, &op)) > 0) {
        const uint32_t bytes = htpw_op_scratch(rule, &op);
        scratch = bytes > scratch ? bytes : scratch;
        if (op.is_cached) {
            const uint32_t size = htpw_round16(htpw_kernel_bytes(rule, &op));
            kernel = size > kernel ? size : kernel;
        }
    }
    if (result < 0) {
        return result;
    }
    for (int i = 1; i < HTPW_SLOTS; i++) {
        slots += model->slot_bytes[i];
    }
    const uint32_t synthesis =
        walk == HTPW_WALK_SYNTHESIS && cursor.layer != 0 ? htpw_synth_scratch(model, backend) : 0u;
    plan->installed_arena_bytes = slots + scratch;
    plan->arena_bytes = slots + (synthesis > scratch ? synthesis : scratch);
    plan->streamed_arena_bytes =
        kernel + synthesis > plan->installed_arena_bytes ? kernel + synthesis : plan->installed_arena_bytes;
    plan->cache_bytes = cursor.cache;
    plan->input_bytes = model->input_bytes;
    plan->output_bytes = model->output_bytes;
    return HTPW_OK;
}

int htpw_plan_memory(const struct htpw_model *model, int backend, struct htpw_plan *plan) {
    return htpw_plan(model, backend, HTPW_WALK_SYNTHESIS, plan);
}

int htpw_cached_op(const struct htpw_model *model, const struct htpw_backend_rule *rule, enum htpw_walk walk,
                   uint32_t layer, struct htpw_op *op) {
    struct htpw_cursor cursor;
    int result = htpw_cursor_start(model, rule, walk, &cursor);
    while (result >= 0 && (result = htpw_cursor_next(model, &cursor, op)) > 0) {
        if (op->is_cached && op->layer == layer) {
            return HTPW_OK;
        }
    }
    return HTPW_ERR_ARGUMENT;
}

HTPW_COLD int htpw_kernel_info(const struct htpw_model *model, uint32_t layer, struct htpw_kernel_info *info) {
    struct htpw_op op;
    if (model == NULL || info == NULL ||
        htpw_cached_op(model, htpw_backend_rule(HTPW_BACKEND_PORTABLE), HTPW_WALK_RUN, layer, &op) != HTPW_OK) {
        return HTPW_ERR_ARGUMENT;
    }
    info->op = op.index;
    info->bytes = op.weight_count;
    return HTPW_OK;
}

size_t htpw_sizeof_model(void) { return sizeof(struct htpw_model); }

size_t htpw_sizeof_context(void) { return sizeof(struct htpw_context); }
