/* Synthesis: codes -> generator -> head -> kernel (docs/SPEC.md 5), made of the same matrix products that inference runs,
 * over several tiles at a time. Matrices are unpacked once per kernel into scratch, small ones into the layout of the
 * backend; of large ones a few rows at a time.
 */
#include "htpw_internal.h"

/* Tiles are made several at a time, so that a backend can share its loads between them. */
#define HTPW_SYNTH_TILES_MAX 16u
#define HTPW_SYNTH_BATCH 512u   /* weights made at one time, unless one tile is larger */
#define HTPW_SYNTH_PACKED 4096u /* bytes of a matrix that is worth a copy in scratch */
#define HTPW_SYNTH_STAGES (HTPW_GENERATOR_LAYERS_MAX + 2)

/* One matrix ready to run. */
struct htpw_stage {
    struct htpw_matrix matrix;
    const void *packed;  /* in the layout of the backend; NULL: a few rows at a time */
    int8_t *rows;        /* scratch for those, unless they lie in the image as they run */
    const int32_t *biases;
    int32_t multiplier, shift, act_min, act_max;
    uint32_t step; /* rows at a time */
};

/* Hands out scratch; with base NULL it only counts, which is how the plan learns the size. */
struct htpw_bump {
    uint8_t *base;
    uint32_t used;
};

static uint8_t *htpw_bump_take(struct htpw_bump *bump, uint32_t bytes) {
    uint8_t *p = bump->base != NULL ? bump->base + bump->used : NULL;
    bump->used += (bytes + 3u) & ~UINT32_C(3);
    return p;
}

void htpw_values_read(const uint8_t *stream, uint32_t first, uint32_t n, uint32_t bits, int8_t *to) {
    const uint32_t at = first * bits; /* bits of a section: below 2^30 */
    const uint8_t *p = stream + at / 8u;
    if (bits == 4 && at % 8u == 0) { /* the usual width of codes */
        for (; n > 1; n -= 2, p++) {
            *to++ = (int8_t)((int32_t)((uint32_t)*p << 28) >> 28);
            *to++ = (int8_t)((int32_t)((uint32_t)*p << 24) >> 28);
        }
    }
    uint32_t held = 0, have = 0;
    if (at % 8u != 0) { /* then nothing has been read yet */
        held = (uint32_t)*p++ >> (at % 8u);
        have = 8u - at % 8u;
    }
    for (; n > 0; n--) {
        if (have < bits) {
            held |= (uint32_t)*p++ << have;
            have += 8u;
        }
        *to++ = (int8_t)((int32_t)(held << (32u - bits)) >> (32u - bits));
        held >>= bits;
        have -= bits;
    }
}

/* The weights of a matrix from value 0 on, whatever they come from. */
struct htpw_source_stream {
    const struct htpw_matrix *matrix;
    uint32_t next;  /* value to come */
    uint32_t state; /* of a seeded matrix: xorshift32, four weights each */
};

static void htpw_stream_start(struct htpw_source_stream *s, const struct htpw_matrix *matrix) {
    s->matrix = matrix;
    s->next = 0;
    s->state = matrix->seed;
}

static void htpw_stream_read(struct htpw_source_stream *s, uint32_t n, int8_t *to) {
    if (s->matrix->seed == 0) {
        htpw_values_read(s->matrix->weights, s->next, n, s->matrix->weight_bits, to);
        s->next += n;
        return;
    }
    uint32_t x = s->state;
    for (; n > 0; n--, s->next++) {
        const uint32_t byte = s->next % 4u;
        if (byte == 0) {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
        }
        *to++ = (int8_t)((int32_t)(x << (24u - 8u * byte)) >> 24);
    }
    s->state = x;
}

/* A small matrix into the layout of the backend, a few values at a time. */
static void htpw_stage_pack(const struct htpw_matrix *m, const struct htpw_layout *layout, void *packed) {
    const uint32_t count = (uint32_t)m->rows * m->cols;
    struct htpw_source_stream stream;
    int8_t some[64];
    htpw_stream_start(&stream, m);
    htpw_layout_clear(layout, m->rows, m->cols, packed);
    for (uint32_t done = 0, n; done < count; done += n) {
        n = count - done < sizeof some ? count - done : (uint32_t)sizeof some;
        htpw_stream_read(&stream, n, some);
        htpw_layout_put(layout, m->cols, done, n, some, packed);
    }
    htpw_layout_finish(layout, m->rows, m->cols, packed);
}

static void htpw_stage_prepare(const struct htpw_matrix *m, const struct htpw_layout *layout, int32_t act_min,
                               int32_t act_max, struct htpw_bump *bump, struct htpw_stage *out) {
    const uint32_t bytes = htpw_layout_bytes(layout, m->rows, m->cols);
    out->matrix = *m;
    out->packed = NULL;
    out->rows = NULL;
    out->biases = NULL;
    out->act_min = act_min;
    out->act_max = act_max;
    out->multiplier = (int32_t)m->multiplier << 16;
    out->shift = m->shift;
    out->step = m->rows;
    if (bytes <= HTPW_SYNTH_PACKED) {
        void *packed = htpw_bump_take(bump, bytes);
        if (packed != NULL) {
            htpw_stage_pack(m, layout, packed);
        }
        out->packed = packed;
    } else {
        out->step = HTPW_SYNTH_PACKED / m->cols; /* cols <= 1024 */
        out->step = out->step < HTPW_SYNTH_BATCH ? out->step : HTPW_SYNTH_BATCH;
        if (m->weight_bits != 8 || m->seed != 0) {
            out->rows = (int8_t *)htpw_bump_take(bump, out->step * m->cols);
        }
    }
    if (m->bias_bits != 0) {
        int32_t *biases = (int32_t *)(void *)htpw_bump_take(bump, 4u * m->rows);
        for (uint32_t i = 0; biases != NULL && i < m->rows; i++) {
            biases[i] = htpw_bits_signed(m->biases, i, m->bias_bits);
        }
        out->biases = biases;
    }
}

struct htpw_synth {
    struct htpw_head head;
    struct htpw_stage stage[HTPW_SYNTH_STAGES];
    uint32_t stages, dz;
    uint32_t tiles;    /* made at one time */
    uint32_t part;     /* weights of a tile made at one time */
    int8_t *buffer[2]; /* codes or embeddings of all of them, used in turn */
    int8_t *weights;   /* on their way into the cache's layout */
    void *scratch;     /* of the backend's kernels */
};

/* Lays out scratch for one head and returns the bytes used; fills it if `base` is not NULL. Kernels are made in [-c, c]. */
static uint32_t htpw_synth_prepare(const struct htpw_model *model, const struct htpw_backend_rule *rule, uint32_t index,
                                   int32_t c, uint8_t *base, struct htpw_synth *s) {
    struct htpw_bump bump = {base, 0};
    struct htpw_generator g;
    (void)htpw_head_load(model, index, &s->head); /* open has checked it */
    const uint32_t tile = s->head.tile;
    uint32_t widest = 0;
    s->stages = 0;
    if (s->head.stages != 0) {
        (void)htpw_generator_load(model, s->head.generator, &g);
        s->dz = widest = g.dz;
        for (uint32_t i = 0; i < g.layers; i++) {
            htpw_stage_prepare(&g.layer[i], &rule->layout, 0, 127, &bump, &s->stage[s->stages++]);
            widest = g.layer[i].rows > widest ? g.layer[i].rows : widest;
        }
        for (uint32_t i = 0; i < s->head.stages; i++) {
            const int is_last = i + 1u == s->head.stages;
            const uint32_t rows = s->head.stage[i].rows;
            htpw_stage_prepare(&s->head.stage[i], &rule->layout, is_last ? -c : -127, is_last ? c : 127, &bump,
                               &s->stage[s->stages++]);
            widest = !is_last && rows > widest ? rows : widest;
        }
        s->part = s->stage[s->stages - 1u].step;
    } else {
        s->dz = 0;
        s->part = tile < HTPW_SYNTH_BATCH ? tile : HTPW_SYNTH_BATCH;
    }
    s->tiles = HTPW_SYNTH_BATCH / tile & ~UINT32_C(1);
    s->tiles = s->tiles > HTPW_SYNTH_TILES_MAX ? HTPW_SYNTH_TILES_MAX : s->tiles;
    s->tiles = s->tiles >= 2u ? s->tiles : s->part < tile || s->head.is_whole ? 1u : 2u;
    s->buffer[0] = (int8_t *)htpw_bump_take(&bump, s->tiles * widest);
    s->buffer[1] = (int8_t *)htpw_bump_take(&bump, s->tiles * widest);
    s->weights = (int8_t *)htpw_bump_take(&bump, s->tiles * s->part);
    s->scratch = htpw_bump_take(&bump, htpw_backend_scratch(rule, widest));
    return htpw_round16(bump.used);
}

uint32_t htpw_synth_scratch(const struct htpw_model *model, int backend) {
    const struct htpw_backend_rule *rule = htpw_backend_rule(htpw_backend_synthesis(backend));
    uint32_t most = 0;
    for (uint32_t i = 0; i < model->head_count; i++) {
        struct htpw_synth s;
        const uint32_t bytes = htpw_synth_prepare(model, rule, i, 127, NULL, &s);
        most = bytes > most ? bytes : most;
    }
    return most;
}

/* ---- where weights go ---- */

static const struct htpw_layout *htpw_op_layout(const struct htpw_backend_rule *rule, const struct htpw_op *op) {
    const int is_matrix = op->kind == HTPW_OP_CONV1X1 || op->kind == HTPW_OP_FC;
    return is_matrix ? &rule->layout : &htpw_backend_rule(HTPW_BACKEND_PORTABLE)->layout;
}

uint32_t htpw_kernel_bytes(const struct htpw_backend_rule *rule, const struct htpw_op *op) {
    return op->is_narrow ? (op->weight_count + 1u) / 2u
                         : htpw_layout_bytes(htpw_op_layout(rule, op), op->out.c, op->products);
}

void htpw_kernel_get(const struct htpw_backend_rule *rule, const struct htpw_op *op, const uint8_t *kernel, int8_t *w) {
    if (op->is_narrow) {
        htpw_values_read(kernel, 0, op->weight_count, 4, w);
    } else {
        htpw_layout_get(htpw_op_layout(rule, op), op->out.c, op->products, kernel, w);
    }
}

/* A kernel that is being made. */
struct htpw_sink {
    const struct htpw_op *op;
    const struct htpw_layout *layout;
    uint8_t *kernel;
    int by_filter; /* weights come filter by filter, and lie tap by tap: depthwise kernels of heads */
};

static void htpw_sink_start(struct htpw_sink *to, const struct htpw_backend_rule *rule, const struct htpw_op *op,
                            uint8_t *kernel) {
    to->op = op;
    to->layout = htpw_op_layout(rule, op);
    to->kernel = kernel;
    to->by_filter = op->kind == HTPW_OP_DEPTHWISE && op->codes != NULL;
    if (op->is_narrow) {
        htpw_zero(kernel, (op->weight_count + 1u) / 2u);
    } else {
        htpw_layout_clear(to->layout, op->out.c, op->products, kernel);
    }
}

/* Weights first .. first + count - 1, in generation or stored order; those past the end of the kernel are dropped. */
static void htpw_sink_put(const struct htpw_sink *to, uint32_t first, uint32_t count, const int8_t *w) {
    const struct htpw_op *op = to->op;
    if (first >= op->weight_count) {
        return;
    }
    count = op->weight_count - first < count ? op->weight_count - first : count;
    if (!op->is_narrow && !to->by_filter) {
        htpw_layout_put(to->layout, op->products, first, count, w, to->kernel);
        return;
    }
    for (uint32_t k = 0; k < count; k++) {
        uint32_t at = first + k;
        if (to->by_filter) {
            at = at % op->products * op->out.c + at / op->products;
        }
        if (op->is_narrow) {
            to->kernel[at / 2u] = (uint8_t)(to->kernel[at / 2u] | ((uint32_t)w[k] & 15u) << (4u * (at % 2u)));
        } else {
            ((int8_t *)to->kernel)[at] = w[k];
        }
    }
}

static void htpw_sink_finish(const struct htpw_sink *to) {
    if (!to->op->is_narrow) {
        htpw_layout_finish(to->layout, to->op->out.c, to->op->products, to->kernel);
    }
}

/* ---- making them ---- */

/* y[tiles][rows] of x[tiles][cols], for a stage that lies packed in scratch. */
static void htpw_stage_run(const struct htpw_backend *backend, const struct htpw_stage *stage, uint32_t tiles,
                           void *scratch, const int8_t *x, int8_t *y) {
    const struct htpw_requant q = {&stage->multiplier, &stage->shift, 0, 0, stage->act_min, stage->act_max};
    backend->packed((int32_t)tiles, stage->matrix.cols, stage->matrix.rows, &q, 0, x, stage->packed, stage->biases,
                    scratch, y);
}

/* The same for a large one, `step` rows at a time: row r of tile t goes to y[t * y_stride + r] or, with `to`, to weight
 * first + t * rows + r of a kernel, by way of y. */
static void htpw_stage_run_parts(const struct htpw_backend *backend, const struct htpw_stage *stage, uint32_t tiles,
                                 void *scratch, const int8_t *x, int8_t *y, const struct htpw_sink *to,
                                 uint32_t first) {
    const struct htpw_requant q = {&stage->multiplier, &stage->shift, 0, 0, stage->act_min, stage->act_max};
    const struct htpw_matrix *m = &stage->matrix;
    struct htpw_source_stream stream;
    htpw_stream_start(&stream, m);
    for (uint32_t row = 0, n; row < m->rows; row += n) {
        const int8_t *w = (const int8_t *)m->weights + (stage->rows == NULL ? row * m->cols : 0u);
        n = m->rows - row < stage->step ? m->rows - row : stage->step;
        if (stage->rows != NULL) {
            htpw_stream_read(&stream, n * m->cols, stage->rows);
            w = stage->rows;
        }
        for (uint32_t t = 0; t < tiles; t++) {
            int8_t *out = to != NULL ? y : y + t * m->rows + row;
            backend->conv1x1(1, m->cols, (int32_t)n, &q, 0, x + t * m->cols, w,
                             stage->biases != NULL ? stage->biases + row : NULL, scratch, out);
            if (to != NULL) {
                htpw_sink_put(to, first + t * m->rows + row, n, out);
            }
        }
    }
}

/* Kernel of an operator whose source is a head with stages. */
static void htpw_synth_tiles(const struct htpw_backend *backend, const struct htpw_op *op, const struct htpw_synth *s,
                             const struct htpw_sink *to) {
    const uint32_t rows = s->head.tile, all = (op->weight_count + rows - 1u) / rows;
    for (uint32_t tile = 0, tiles; tile < all; tile += tiles) {
        uint32_t from = 0;
        tiles = all - tile < s->tiles ? all - tile : s->tiles;
        if (s->head.entries == 0) {
            htpw_values_read(op->codes, tile * s->dz, tiles * s->dz, op->code_bits, s->buffer[0]);
        } else {
            for (uint32_t t = 0; t < tiles; t++) {
                const uint32_t id = htpw_bits_unsigned(op->codes, tile + t, op->code_bits);
                htpw_values_read(s->head.table, id * s->dz, s->dz, s->head.entry_bits, s->buffer[0] + t * s->dz);
            }
        }
        for (uint32_t i = 0; i + 1u < s->stages; i++, from ^= 1u) {
            const struct htpw_stage *stage = &s->stage[i];
            if (stage->packed != NULL) {
                htpw_stage_run(backend, stage, tiles, s->scratch, s->buffer[from], s->buffer[from ^ 1u]);
            } else {
                htpw_stage_run_parts(backend, stage, tiles, s->scratch, s->buffer[from], s->buffer[from ^ 1u], NULL, 0);
            }
        }
        const struct htpw_stage *last = &s->stage[s->stages - 1u];
        if (last->packed != NULL) {
            htpw_stage_run(backend, last, tiles, s->scratch, s->buffer[from], s->weights);
            htpw_sink_put(to, tile * rows, tiles * rows, s->weights);
        } else {
            htpw_stage_run_parts(backend, last, tiles, s->scratch, s->buffer[from], s->weights, to, tile * rows);
        }
    }
}

/* Kernel of an operator whose tiles are entries of a stored table. */
static void htpw_synth_entries(const struct htpw_op *op, const struct htpw_synth *s, const struct htpw_sink *to) {
    const uint32_t rows = s->head.tile;
    for (uint32_t tile = 0; tile < op->code_count; tile++) {
        const uint32_t id = htpw_bits_unsigned(op->codes, tile, op->code_bits);
        for (uint32_t row = 0, n; row < rows; row += n) {
            n = rows - row < s->part ? rows - row : s->part;
            htpw_values_read(s->head.table, id * rows + row, n, s->head.entry_bits, s->weights);
            htpw_sink_put(to, tile * rows + row, n, s->weights);
        }
    }
}

/* Kernel of an operator that is stored in fewer bits than it is cached with. */
static void htpw_synth_stored(const struct htpw_op *op, const struct htpw_sink *to) {
    int8_t some[64];
    for (uint32_t done = 0, n; done < op->weight_count; done += n) {
        n = op->weight_count - done < sizeof some ? op->weight_count - done : (uint32_t)sizeof some;
        htpw_values_read(op->weights, done, n, op->weight_bits, some);
        htpw_sink_put(to, done, n, some);
    }
}

void htpw_synth_kernel(const struct htpw_model *model, const struct htpw_backend *backend, const struct htpw_op *op,
                       uint8_t *scratch, uint8_t *kernel) {
    struct htpw_sink to;
    htpw_sink_start(&to, htpw_backend_rule(backend->id), op, kernel);
    if (op->codes == NULL) {
        htpw_synth_stored(op, &to);
    } else {
        const int with = htpw_backend_synthesis(backend->id);
        struct htpw_synth s;
        (void)htpw_synth_prepare(model, htpw_backend_rule(with), op->head, op->is_narrow ? 7 : 127, scratch, &s);
        if (s.stages != 0) {
            htpw_synth_tiles(htpw_backend_get(with), op, &s, &to);
        } else {
            htpw_synth_entries(op, &s, &to);
        }
    }
    htpw_sink_finish(&to);
}
