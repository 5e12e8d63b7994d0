/* The parts of the library that a build may leave out: which there are, and which an image needs. */
#include "htpw_internal.h"

enum htpw_part_kind { HTPW_PART_OPERATOR, HTPW_PART_SOURCE, HTPW_PART_EXTRA };

static const struct htpw_part_row {
    uint8_t kind, id, is_there;
    const char *name;
} htpw_parts[] = {
#define HTPW_OPERATOR_ROW(name, id, bytes) {HTPW_PART_OPERATOR, id, HTPW_WITH(name), #name},
#define HTPW_SOURCE_ROW(name, id, more) {HTPW_PART_SOURCE, id, HTPW_WITH(name), #name},
#define HTPW_EXTRA_ROW(name, id) {HTPW_PART_EXTRA, id, HTPW_WITH(name), #name},
    HTPW_OPERATORS(HTPW_OPERATOR_ROW) HTPW_STORED(HTPW_SOURCE_ROW) HTPW_HEADS(HTPW_SOURCE_ROW)
        HTPW_EXTRAS(HTPW_EXTRA_ROW)
#undef HTPW_OPERATOR_ROW
#undef HTPW_SOURCE_ROW
#undef HTPW_EXTRA_ROW
};

#define HTPW_PART_COUNT (sizeof htpw_parts / sizeof htpw_parts[0])

const char *htpw_part_name(size_t i) { return i < HTPW_PART_COUNT ? htpw_parts[i].name : NULL; }

int htpw_part_is_there(size_t i) { return i < HTPW_PART_COUNT && htpw_parts[i].is_there; }

/* What generators and heads need of a part that belongs to no operator. */
static int htpw_heads_need(const struct htpw_model *model, const struct htpw_part_row *part) {
    struct htpw_generator generator;
    struct htpw_head head;
    int needs = 0;
    for (uint32_t i = 0; i < model->head_count && htpw_head_load(model, i, &head) == HTPW_OK; i++) {
        needs |= part->kind == HTPW_PART_SOURCE && head.kind == part->id;
        for (uint32_t k = 0; part->kind == HTPW_PART_EXTRA && part->id == HTPW_EXTRA_LARGE && k < head.stages; k++) {
            needs |= htpw_matrix_is_large(&head.stage[k]);
        }
    }
    for (uint32_t i = 0; htpw_generator_load(model, i, &generator) == HTPW_OK; i++) {
        for (uint32_t k = 0; part->kind == HTPW_PART_EXTRA && part->id == HTPW_EXTRA_LARGE && k < generator.layers;
             k++) {
            needs |= htpw_matrix_is_large(&generator.layer[k]);
        }
    }
    return needs;
}

int htpw_model_needs(const struct htpw_model *model, size_t i) {
    struct htpw_cursor cursor;
    struct htpw_op op;
    if (model == NULL || model->operator_count == 0 || i >= HTPW_PART_COUNT) {
        return HTPW_ERR_ARGUMENT;
    }
    const struct htpw_part_row *part = &htpw_parts[i];
    int needs = htpw_heads_need(model, part);
    int result = htpw_cursor_start(model, htpw_backend_rule(HTPW_BACKEND_PORTABLE), HTPW_WALK_RUN, &cursor);
    while (result >= 0 && (result = htpw_cursor_next(model, &cursor, &op)) > 0) {
        needs |= part->kind == HTPW_PART_OPERATOR ? op.kind == part->id
                 : part->kind == HTPW_PART_SOURCE ? op.weight_count != 0 && op.source == part->id
                                                  : htpw_op_needs(&op, (enum htpw_extra)part->id);
    }
    return result < 0 ? result : needs;
}
