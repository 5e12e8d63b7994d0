/* Binding memory, the schedules with a cache in SRAM, and the operator loop. */
#include "htpw_internal.h"
#include "kernels/htpw_requantise.h"

static int htpw_is_ready(const struct htpw_context *ctx, uint32_t layer) {
    return (ctx->ready[layer / 8u] >> (layer % 8u)) & 1u;
}

/* Makes one kernel of a context with a cache. Its ready bit is set last: an interrupted synthesis is simply done again. */
static HTPW_COLD void htpw_make_ready(struct htpw_context *ctx, const struct htpw_op *op, struct htpw_synth *s) {
    uint8_t *scratch = ctx->arena;
    for (int i = 1; i < HTPW_SLOTS; i++) {
        scratch += ctx->model->slot_bytes[i];
    }
    htpw_synth_kernel(ctx->model, ctx->backend, op, s, scratch, ctx->cache + op->cache_offset);
    ctx->ready[op->layer / 8u] = (uint8_t)(ctx->ready[op->layer / 8u] | (1u << (op->layer % 8u)));
}

/* Makes every kernel. */
static HTPW_COLD int htpw_make_all(struct htpw_context *ctx) {
    struct htpw_cursor cursor;
    struct htpw_synth s;
    struct htpw_op op;
    int result = htpw_cursor_start(ctx->model, htpw_backend_rule(ctx->backend->id), HTPW_WALK_SYNTHESIS, &cursor);
    s.made_for = HTPW_SYNTH_NONE;
    while (result >= 0 && (result = htpw_cursor_next(ctx->model, &cursor, &op)) > 0) {
        if (op.is_cached) {
            htpw_make_ready(ctx, &op, &s);
        }
    }
    return result;
}

HTPW_COLD int htpw_bind_common(struct htpw_context *ctx, const struct htpw_model *model, int backend, void *arena,
                               enum htpw_walk walk, struct htpw_plan *plan) {
    const struct htpw_backend *kernels = htpw_backend_get(backend);
    const int error = htpw_plan(model, backend, walk, plan);
    if (error != HTPW_OK) {
        return error;
    }
    if (kernels == NULL) {
        return HTPW_ERR_BACKEND;
    }
    if (arena == NULL) {
        return HTPW_ERR_ARGUMENT;
    }
    if ((uintptr_t)arena % 4 != 0) {
        return HTPW_ERR_ALIGNMENT;
    }
    htpw_zero(ctx, sizeof *ctx);
    ctx->model = model;
    ctx->backend = kernels;
    ctx->arena = (uint8_t *)arena;
    return HTPW_OK;
}

/* Binding checks everything before it changes the context. */
HTPW_COLD int htpw_bind(struct htpw_context *ctx, const struct htpw_model *model, int backend, void *arena,
                        size_t arena_bytes, void *cache, size_t cache_bytes, int schedule) {
    struct htpw_context bound;
    struct htpw_plan plan;
    if (!HTPW_WITH(LAZY) && schedule == HTPW_LAZY) {
        return HTPW_LEFT_OUT_EXTRA(HTPW_EXTRA_LAZY);
    }
    const int error = htpw_bind_common(&bound, model, backend, arena, HTPW_WALK_SYNTHESIS, &plan);
    if (error != HTPW_OK) {
        return error;
    }
    if (ctx == NULL || (schedule != HTPW_BOOT && schedule != HTPW_LAZY) || (cache == NULL && plan.cache_bytes != 0)) {
        return HTPW_ERR_ARGUMENT;
    }
    if ((uintptr_t)cache % 4 != 0) {
        return HTPW_ERR_ALIGNMENT;
    }
    if (arena_bytes < plan.arena_bytes) {
        return HTPW_ERR_ARENA;
    }
    if (cache_bytes < plan.cache_bytes) {
        return HTPW_ERR_CACHE;
    }
    bound.cache = (uint8_t *)cache;
    bound.kernels = bound.cache;
    *ctx = bound;
    return schedule == HTPW_BOOT ? htpw_make_all(ctx) : HTPW_OK;
}

/* Decodes cached operator `layer` with its codes and makes its kernel. */
static HTPW_COLD int htpw_make_layer(struct htpw_context *ctx, uint32_t layer) {
    struct htpw_synth s;
    struct htpw_op op;
    const int error = htpw_cached_op(ctx->model, htpw_backend_rule(ctx->backend->id), HTPW_WALK_SYNTHESIS, layer, &op);
    if (error == HTPW_OK) {
        s.made_for = HTPW_SYNTH_NONE;
        htpw_make_ready(ctx, &op, &s);
    }
    return error;
}

HTPW_COLD int htpw_synth_layer(struct htpw_context *ctx, uint32_t layer) {
    if (ctx == NULL || ctx->model == NULL || ctx->cache == NULL || layer >= ctx->model->cached_count) {
        return HTPW_ERR_ARGUMENT;
    }
    return htpw_make_layer(ctx, layer);
}

HTPW_COLD int htpw_kernel_read(struct htpw_context *ctx, uint32_t layer, int8_t *weights, size_t bytes) {
    struct htpw_op op;
    if (ctx == NULL || ctx->model == NULL || weights == NULL) {
        return HTPW_ERR_ARGUMENT;
    }
    const struct htpw_backend_rule *rule = htpw_backend_rule(ctx->backend->id);
    int error = htpw_cached_op(ctx->model, rule, HTPW_WALK_RUN, layer, &op);
    if (error == HTPW_OK && bytes != op.weight_count) {
        error = HTPW_ERR_ARGUMENT;
    }
    if (error == HTPW_OK && !htpw_is_ready(ctx, layer)) {
        error = htpw_make_layer(ctx, layer);
    }
    if (error == HTPW_OK) {
        htpw_kernel_get(rule, &op, ctx->kernels + op.cache_offset, weights);
    }
    return error;
}

/* Runs one linear operator: kernel into the cache if need be, metadata into scratch, then the integer kernel. */
static int htpw_run_linear(struct htpw_context *ctx, const struct htpw_op *op, uint8_t *scratch, const int8_t *x,
                           int8_t *y) {
    const struct htpw_backend *b = ctx->backend;
    if (HTPW_WITH(LAZY) && op->is_cached && !htpw_is_ready(ctx, op->layer)) {
        const int error = htpw_make_layer(ctx, op->layer);
        if (error != HTPW_OK) {
            return error;
        }
    }
    const uint8_t *kernel = op->is_cached ? ctx->kernels + op->cache_offset : op->weights;
    const int8_t *weights = (const int8_t *)kernel;
    int32_t *words = (int32_t *)(void *)scratch; /* the arena is 4-byte aligned and every part of it a multiple of 16 */
    htpw_quant_expand(&op->quant, words);
    const int32_t *bias = words + 2u * op->quant.count;
    const struct htpw_requant q = {
        words,      words + op->quant.count, op->quant.count != 1 || op->out.c == 1, op->out.zero_point, op->act_min,
        op->act_max};
    const int32_t offset = -op->in.zero_point;
    const int32_t cells = op->kind == HTPW_OP_FC ? 1 : (int32_t)op->in.h * op->in.w;
    const int32_t rows = (int32_t)HTPW_BATCH(op->window.n) * cells; /* of conv1x1, and of fc */
    const int32_t in_c = (int32_t)op->products, out_c = op->out.c;
    scratch += htpw_op_quant_bytes(op);
    const int is_narrow = HTPW_WITH(NARROW) && op->is_narrow;
    if (htpw_op_is(op, CONV)) {
        if (is_narrow) {
            htpw_conv_s4_ref(&op->window, &q, offset, x, kernel, bias, y);
        } else {
            b->conv(&op->window, &q, offset, x, weights, bias, scratch, y);
        }
    } else if (htpw_op_is(op, DEPTHWISE)) {
        if (is_narrow) {
            htpw_depthwise_s4_ref(&op->window, &q, offset, x, kernel, bias, y);
        } else {
            b->depthwise(&op->window, &q, offset, x, weights, bias, scratch, y);
        }
    } else if (HTPW_ANY_MATRIX) { /* conv1x1, or fc, which is the same with one row */
        if (is_narrow) {
            b->conv1x1_s4(rows, in_c, out_c, &q, offset, x, kernel, bias, scratch, y);
        } else if (op->is_cached) {
            b->packed(rows, in_c, out_c, &q, offset, x, kernel, bias, scratch, y);
        } else {
            b->conv1x1(rows, in_c, out_c, &q, offset, x, weights, bias, scratch, y);
        }
    }
    return HTPW_OK;
}

/* Elements of the output, of all windows. */
static uint32_t htpw_run_size(const struct htpw_op *op) {
    return (uint32_t)HTPW_BATCH(op->window.n) * htpw_tensor_size(&op->out);
}

static void htpw_run_table(const struct htpw_op *op, const int8_t *x, int8_t *y) {
    const uint32_t n = htpw_run_size(op);
    htpw_table_s8_ref(n, (const int8_t *)op->table, x, y);
    htpw_clamp_s8_ref(n, op->act_min, op->act_max, y, y);
}

/* The element-wise kernel, with a second input of one value for each channel at every position anew. */
static void htpw_run_mul(const struct htpw_op *op, const int8_t *x, const int8_t *second, int8_t *y) {
    const uint32_t n = htpw_tensor_size(&op->out), step = op->is_broadcast ? op->out.c : n;
    for (int32_t window = 0; window < (int32_t)HTPW_BATCH(op->window.n); window++, x += n, second += step, y += n) {
        for (uint32_t i = 0; i < n; i += step) {
            htpw_mul_s8_ref(step, &op->scalars, x + i, second, y + i);
        }
    }
}

/* Softmax of the scores into `p`, then the sum of the positions with these weights. */
static void htpw_run_attend(const struct htpw_op *op, const int8_t *x, const int8_t *scores, int8_t *p, int8_t *y) {
    const struct htpw_elementwise *e = &op->scalars;
    const int32_t n = (int32_t)op->in.h * op->in.w, channels = op->in.c;
    htpw_softmax_s8_ref(1, n, op->softmax_multiplier, op->softmax_shift, -(int32_t)op->softmax_range, scores, p);
    for (int32_t c = 0; c < channels; c++) {
        int32_t sum = 0;
        for (int32_t i = 0; i < n; i++) {
            sum += (p[i] + 128) * (x[i * channels + c] + e->a_offset);
        }
        sum = htpw_requantise_inline(sum, e->out_multiplier, e->out_shift) + e->out_offset;
        y[c] = (int8_t)htpw_clamp(sum, e->act_min, e->act_max);
    }
}

/* One operator. slot: where its tensors lie, the input's too; behind them scratch. */
static int htpw_run_op(struct htpw_context *ctx, const struct htpw_op *op, int8_t *const *slot) {
    const int8_t *x = slot[op->slot_in], *second = slot[op->slot_in2]; /* if it has one */
    uint8_t *scratch = (uint8_t *)slot[HTPW_SLOTS];
    int8_t *y = slot[op->slot_out];
    if (htpw_op_is(op, ADD)) {
        ctx->backend->add(htpw_run_size(op), &op->scalars, x, second, y);
    } else if (htpw_op_is(op, AVGPOOL)) {
        ctx->backend->avgpool(&op->window, op->act_min, op->act_max, x, y);
    } else if (htpw_op_is(op, MAXPOOL)) {
        ctx->backend->maxpool(&op->window, op->act_min, op->act_max, x, y);
    } else if (htpw_op_is(op, TABLE)) {
        htpw_run_table(op, x, y);
    } else if (htpw_op_is(op, MUL)) {
        htpw_run_mul(op, x, second, y);
    } else if (htpw_op_is(op, ATTEND)) {
        const uint32_t n = htpw_tensor_size(&op->in), positions = n / op->in.c;
        for (int32_t i = 0; i < (int32_t)HTPW_BATCH(op->window.n); i++, x += n, second += positions, y += op->out.c) {
            htpw_run_attend(op, x, second, (int8_t *)scratch, y);
        }
    } else {
        return htpw_run_linear(ctx, op, scratch, x, y);
    }
    return HTPW_OK;
}

/* Operators first .. end - 1 of one window, whose tensors lie in the arena; in a build with HTPW_CONFIG_BATCH of some,
 * tensor after tensor. Returns how many are left, or an error. */
static int htpw_run_some(struct htpw_context *ctx, uint32_t windows, const int8_t *input, int8_t *logits,
                         uint32_t first, uint32_t end) {
    const struct htpw_model *model = ctx->model;
    struct htpw_cursor cursor;
    struct htpw_op op;
    int8_t *slot[HTPW_SLOTS + 1];
    uint8_t *at = ctx->arena;
    slot[0] = (int8_t *)(uintptr_t)input; /* no operator writes to it: the decoder has seen to that */
    for (int i = 1; i < HTPW_SLOTS; i++) {
        slot[i] = (int8_t *)at;
        at += HTPW_BATCH(windows) * model->slot_bytes[i];
    }
    slot[HTPW_SLOTS] = (int8_t *)at;
    int result = htpw_cursor_start(model, htpw_backend_rule(ctx->backend->id), HTPW_WALK_RUN, &cursor);
    while (result >= 0 && cursor.index < end && (result = htpw_cursor_next(model, &cursor, &op)) > 0) {
        if (HTPW_WITH(HOOK) && op.index < first) {
            continue;
        }
        if (HTPW_WITH(HOOK) && ctx->hook != NULL) {
            ctx->hook(ctx->hook_user, op.index, 0);
        }
#ifdef HTPW_CONFIG_BATCH
        op.window.n = (int32_t)windows;
#endif
        result = htpw_run_op(ctx, &op, slot);
        if (HTPW_WITH(HOOK) && ctx->hook != NULL) {
            ctx->hook(ctx->hook_user, op.index, 1);
        }
    }
    if (result >= 0 && end == model->operator_count) { /* the logits are in the slot that the last operator wrote */
        const int8_t *y = slot[op.slot_out];
        for (uint32_t i = 0; i < HTPW_BATCH(windows) * model->output_bytes; i++) {
            logits[i] = y[i];
        }
    }
    return result < 0 ? result : (int)(model->operator_count - end);
}

static int htpw_run_is_valid(const struct htpw_context *ctx, const int8_t *input, size_t input_bytes,
                             const int8_t *logits, size_t output_bytes) {
    return ctx != NULL && ctx->model != NULL && input != NULL && logits != NULL &&
           input_bytes == ctx->model->input_bytes && output_bytes == ctx->model->output_bytes;
}

int htpw_run(struct htpw_context *ctx, const int8_t *input, size_t input_bytes, int8_t *logits, size_t output_bytes) {
    if (!htpw_run_is_valid(ctx, input, input_bytes, logits, output_bytes)) {
        return HTPW_ERR_ARGUMENT;
    }
    if (HTPW_WITH(HOOK) && ctx->done != 0) {
        return HTPW_ERR_RESUME;
    }
    return htpw_run_some(ctx, 1, input, logits, 0, ctx->model->operator_count);
}

#ifdef HTPW_CONFIG_BATCH
int htpw_run_batch(struct htpw_context *ctx, void *arena, uint32_t windows, const int8_t *input, int8_t *logits) {
    struct htpw_context batch;
    if (ctx == NULL || ctx->model == NULL || arena == NULL || windows == 0 || input == NULL || logits == NULL) {
        return HTPW_ERR_ARGUMENT;
    }
    if (ctx->done != 0) {
        return HTPW_ERR_RESUME;
    }
    /* HTPW_LAZY makes kernels in the context's own arena */
    for (uint32_t layer = 0; layer < ctx->model->cached_count; layer++) {
        const int error = ctx->cache == NULL || htpw_is_ready(ctx, layer) ? HTPW_OK : htpw_make_layer(ctx, layer);
        if (error != HTPW_OK) {
            return error;
        }
    }
    batch = *ctx;
    batch.arena = (uint8_t *)arena;
    return htpw_run_some(&batch, windows, input, logits, 0, ctx->model->operator_count);
}
#endif

int htpw_run_partial(struct htpw_context *ctx, const int8_t *input, size_t input_bytes, int8_t *logits,
                     size_t output_bytes, uint32_t layers) {
    if (!HTPW_WITH(HOOK)) {
        return HTPW_LEFT_OUT_EXTRA(HTPW_EXTRA_HOOK);
    }
    if (!htpw_run_is_valid(ctx, input, input_bytes, logits, output_bytes) || layers == 0) {
        return HTPW_ERR_ARGUMENT;
    }
    if (ctx->done != 0 && (ctx->input != input || ctx->logits != logits)) {
        return HTPW_ERR_RESUME;
    }
    const uint32_t first = ctx->done, all = ctx->model->operator_count;
    const uint32_t end = layers < all - first ? first + layers : all;
    const int left = htpw_run_some(ctx, 1, input, logits, first, end);
    ctx->input = input;
    ctx->logits = logits;
    ctx->done = left > 0 ? end : 0u;
    return left;
}

int htpw_run_cancel(struct htpw_context *ctx) {
    if (ctx == NULL || ctx->model == NULL) {
        return HTPW_ERR_ARGUMENT;
    }
    ctx->done = 0;
    return HTPW_OK;
}

int htpw_set_hook(struct htpw_context *ctx, htpw_hook_fn hook, void *user) {
    if (!HTPW_WITH(HOOK)) {
        return HTPW_LEFT_OUT_EXTRA(HTPW_EXTRA_HOOK);
    }
    if (ctx == NULL || ctx->model == NULL) {
        return HTPW_ERR_ARGUMENT;
    }
    ctx->hook = hook;
    ctx->hook_user = user;
    return HTPW_OK;
}
