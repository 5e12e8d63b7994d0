/* Binding memory, synthesis schedules, and the operator loop. */
#include "htpw_internal.h"

static int htpw_is_ready(const struct htpw_context *ctx, uint32_t layer) {
    return (ctx->ready[layer / 8u] >> (layer % 8u)) & 1u;
}

/* Synthesises one kernel. Its ready bit is set last: an interrupted synthesis is simply done again. */
static void htpw_make_ready(struct htpw_context *ctx, const struct htpw_op *op) {
    uint8_t *scratch = ctx->arena;
    for (int i = 1; i < HTPW_SLOTS; i++) {
        scratch += ctx->model->slot_bytes[i];
    }
    htpw_synth_kernel(ctx->model, ctx->backend, op, scratch, ctx->cache);
    ctx->ready[op->layer / 8u] = (uint8_t)(ctx->ready[op->layer / 8u] | (1u << (op->layer % 8u)));
}

/* Synthesises generated operator `layer`, or all of them if it is HTPW_GENERATED_MAX. */
static int htpw_synth_some(struct htpw_context *ctx, uint32_t layer) {
    struct htpw_cursor cursor;
    struct htpw_op op;
    int result = htpw_cursor_start(ctx->model, htpw_backend_rule(ctx->backend->id), &cursor);
    if (result != HTPW_OK) {
        return result;
    }
    while ((result = htpw_cursor_next(ctx->model, &cursor, &op)) > 0) {
        if (op.codes != NULL && (layer == HTPW_GENERATED_MAX || layer == op.layer)) {
            htpw_make_ready(ctx, &op);
        }
    }
    return result;
}

int htpw_bind(struct htpw_context *ctx, const struct htpw_model *model, int backend, void *arena, size_t arena_bytes,
              void *cache, size_t cache_bytes, int schedule) {
    const struct htpw_backend *kernels = htpw_backend_get(backend);
    struct htpw_plan plan;
    const int error = htpw_plan_memory(model, backend, &plan);
    if (error != HTPW_OK) {
        return error;
    }
    if (kernels == NULL) {
        return HTPW_ERR_BACKEND;
    }
    if (ctx == NULL || arena == NULL || (schedule != HTPW_BOOT && schedule != HTPW_LAZY) ||
        (cache == NULL && plan.cache_bytes != 0)) {
        return HTPW_ERR_ARGUMENT;
    }
    if ((uintptr_t)arena % 4 != 0 || (uintptr_t)cache % 4 != 0) {
        return HTPW_ERR_ALIGNMENT;
    }
    if (arena_bytes < plan.arena_bytes) {
        return HTPW_ERR_ARENA;
    }
    if (cache_bytes < plan.cache_bytes) {
        return HTPW_ERR_CACHE;
    }
    htpw_zero(ctx, sizeof *ctx);
    ctx->model = model;
    ctx->backend = kernels;
    ctx->arena = (uint8_t *)arena;
    ctx->cache = (uint8_t *)cache;
    return schedule == HTPW_BOOT && model->generated_count != 0 ? htpw_synth_some(ctx, HTPW_GENERATED_MAX) : HTPW_OK;
}

int htpw_synth_layer(struct htpw_context *ctx, uint32_t layer) {
    if (ctx == NULL || ctx->model == NULL || layer >= ctx->model->generated_count) {
        return HTPW_ERR_ARGUMENT;
    }
    return htpw_synth_some(ctx, layer);
}

int htpw_kernel_read(struct htpw_context *ctx, uint32_t layer, int8_t *weights, size_t bytes) {
    struct htpw_cursor cursor;
    struct htpw_op op;
    struct htpw_kernel_info info;
    if (ctx == NULL || ctx->model == NULL || weights == NULL || htpw_kernel_info(ctx->model, layer, &info) != HTPW_OK ||
        bytes != info.bytes) {
        return HTPW_ERR_ARGUMENT;
    }
    const struct htpw_backend_rule *rule = htpw_backend_rule(ctx->backend->id);
    int result = htpw_cursor_start(ctx->model, rule, &cursor);
    while (result >= 0 && (result = htpw_cursor_next(ctx->model, &cursor, &op)) > 0) {
        if (op.codes != NULL && op.layer == layer) {
            if (!htpw_is_ready(ctx, layer)) {
                htpw_make_ready(ctx, &op);
            }
            htpw_layout_get(htpw_op_layout(rule, &op), op.out.c, op.products, ctx->cache + op.cache_offset, weights);
            return HTPW_OK;
        }
    }
    return result < 0 ? result : HTPW_ERR_ARGUMENT;
}

/* Runs one linear operator: kernel into the cache if need be, metadata into scratch, then the integer kernel. */
static void htpw_run_linear(struct htpw_context *ctx, const struct htpw_op *op, uint8_t *scratch, const int8_t *x,
                            int8_t *y) {
    const struct htpw_backend *b = ctx->backend;
    const int is_generated = op->codes != NULL;
    if (is_generated && !htpw_is_ready(ctx, op->layer)) {
        htpw_make_ready(ctx, op);
    }
    const int8_t *weights = is_generated ? (const int8_t *)ctx->cache + op->cache_offset : op->weights;
    int32_t *words = (int32_t *)(void *)scratch; /* the arena is 4-byte aligned and every part of it a multiple of 16 */
    htpw_quant_expand(&op->quant, words);
    const int32_t *bias = words + 2u * op->quant.count;
    const struct htpw_requant q = {words,           words + op->quant.count, op->quant.count != 1 || op->out.c == 1,
                                   op->out.zero_point, op->act_min,          op->act_max};
    const int32_t offset = -op->in.zero_point;
    scratch += htpw_op_quant_bytes(op);
    if (op->kind == HTPW_OP_CONV) {
        b->conv(&op->window, &q, offset, x, weights, bias, scratch, y);
    } else if (op->kind == HTPW_OP_DEPTHWISE) {
        b->depthwise(&op->window, &q, offset, x, weights, bias, scratch, y);
    } else { /* conv1x1, or fc, which is the same with one row */
        const int32_t rows = op->kind == HTPW_OP_FC ? 1 : (int32_t)op->in.h * op->in.w;
        const int32_t in_c = (int32_t)op->products, out_c = op->out.c;
        if (is_generated) {
            b->packed(rows, in_c, out_c, &q, offset, x, weights, bias, scratch, y);
        } else {
            b->conv1x1(rows, in_c, out_c, &q, offset, x, weights, bias, scratch, y);
        }
    }
}

int htpw_run(struct htpw_context *ctx, const int8_t *input, size_t input_bytes, int8_t *logits, size_t output_bytes) {
    struct htpw_cursor cursor;
    struct htpw_op op;
    uint8_t *slot[HTPW_SLOTS + 1]; /* arena: slots 1.., then scratch */
    if (ctx == NULL || ctx->model == NULL || input == NULL || logits == NULL ||
        input_bytes != ctx->model->input_bytes || output_bytes != ctx->model->output_bytes) {
        return HTPW_ERR_ARGUMENT;
    }
    slot[1] = ctx->arena;
    for (int i = 1; i < HTPW_SLOTS; i++) {
        slot[i + 1] = slot[i] + ctx->model->slot_bytes[i];
    }
    int result = htpw_cursor_start(ctx->model, htpw_backend_rule(ctx->backend->id), &cursor);
    if (result != HTPW_OK) {
        return result;
    }
    while ((result = htpw_cursor_next(ctx->model, &cursor, &op)) > 0) {
        const int8_t *x = op.slot_in == 0 ? input : (const int8_t *)slot[op.slot_in];
        int8_t *y = (int8_t *)slot[op.slot_out];
        switch (op.kind) {
        case HTPW_OP_ADD:
            ctx->backend->add(htpw_tensor_size(&op.out), &op.add, x,
                              op.slot_in2 == 0 ? input : (const int8_t *)slot[op.slot_in2], y);
            break;
        case HTPW_OP_AVGPOOL:
            ctx->backend->avgpool(&op.window, op.act_min, op.act_max, x, y);
            break;
        case HTPW_OP_MAXPOOL:
            ctx->backend->maxpool(&op.window, op.act_min, op.act_max, x, y);
            break;
        default:
            htpw_run_linear(ctx, &op, slot[HTPW_SLOTS], x, y);
            break;
        }
    }
    if (result == 0) { /* the logits are in the slot that the last operator wrote */
        const int8_t *y = (const int8_t *)slot[op.slot_out];
        for (size_t i = 0; i < output_bytes; i++) {
            logits[i] = y[i];
        }
    }
    return result;
}
