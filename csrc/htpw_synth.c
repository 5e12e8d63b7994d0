/* Synthesis: codes -> generator -> head -> kernel (docs/SPEC.md 5), made of the same matrix products that inference runs,
 * over several tiles at a time. Matrices are unpacked once per kernel into scratch, small ones into the layout of the
 * backend; of large ones a few rows at a time.
 */
#include "backends/armv81m_mve/htpw_mve.h"
#include "htpw_internal.h"

#define HTPW_SYNTH_BATCH 512u /* weights that pass through scratch at one time, unless one tile is larger */

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
    if (HTPW_WITH(UNROLL) && bits == 4 && at % 8u == 0) { /* the usual width of codes */
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
struct htpw_stream {
    const struct htpw_matrix *matrix;
    uint32_t next; /* value to come */
    uint32_t state; /* of a seeded matrix: xorshift32, four weights each */
};

static void htpw_stream_start(struct htpw_stream *s, const struct htpw_matrix *matrix) {
    s->matrix = matrix;
    s->next = 0;
    s->state = matrix->seed;
}

static void htpw_stream_read(struct htpw_stream *s, uint32_t n, int8_t *to) {
    if (!HTPW_WITH(SEEDED) || s->matrix->seed == 0) {
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
static HTPW_COLD void htpw_stage_pack(const struct htpw_matrix *m, const struct htpw_layout *layout, void *packed) {
    const uint32_t count = (uint32_t)m->rows * m->cols;
    struct htpw_stream stream;
    int8_t some[64];
    htpw_stream_start(&stream, m);
    if (!HTPW_ANY_BLOCKS) {
        htpw_stream_read(&stream, count, (int8_t *)packed);
        return;
    }
    htpw_layout_clear(layout, m->rows, m->cols, packed);
    const int is_plain = m->weight_bits == 8 && m->seed == 0;
    if (is_plain) {
        htpw_layout_put(layout, m->cols, 0, count, (const int8_t *)m->weights, packed);
    }
    for (uint32_t done = is_plain ? count : 0u, n; done < count; done += n) {
        n = count - done < sizeof some ? count - done : (uint32_t)sizeof some;
        htpw_stream_read(&stream, n, some);
        htpw_layout_put(layout, m->cols, done, n, some, packed);
    }
#ifndef HTPW_HAS_ARMV81M_MVE /* Helium multiplies row sums by the input offset, which synthesis has not */
    htpw_layout_finish(layout, m->rows, m->cols, packed);
#endif
}

static HTPW_COLD void htpw_stage_prepare(const struct htpw_matrix *m, const struct htpw_layout *layout, int32_t act_min,
                                         int32_t act_max, struct htpw_bump *bump, struct htpw_synth_layer *out,
                                         struct htpw_part *part) {
    const uint32_t bytes = htpw_layout_bytes(layout, m->rows, m->cols);
    part->step = m->rows;
    if (HTPW_WITH(LARGE)) {
        part->matrix = *m;
        part->rows = NULL;
    }
    out->is_packed = !HTPW_WITH(LARGE) || bytes <= HTPW_SYNTH_PACKED; /* open has refused what is larger */
    out->weights = m->weights;
    out->biases = NULL;
    out->bias_max = 0;
    out->rows = m->rows;
    out->cols = m->cols;
    out->act_min = act_min;
    out->act_max = act_max;
    out->multiplier = (int32_t)m->multiplier << 16;
    out->shift = m->shift;
    if (out->is_packed) {
        void *packed = htpw_bump_take(bump, bytes);
        if (packed != NULL) {
            htpw_stage_pack(m, layout, packed);
        }
        out->weights = packed;
    } else {
        part->step = HTPW_SYNTH_PACKED / m->cols; /* cols <= 1024 */
        part->step = part->step < HTPW_SYNTH_BATCH ? part->step : HTPW_SYNTH_BATCH;
        if (m->weight_bits != 8 || m->seed != 0) {
            part->rows = (int8_t *)htpw_bump_take(bump, part->step * m->cols);
        }
    }
    if (m->bias_bits != 0) {
        int32_t *biases = (int32_t *)(void *)htpw_bump_take(bump, 4u * m->rows);
        for (uint32_t i = 0; biases != NULL && i < m->rows; i++) {
            const int32_t bias = htpw_bits_signed(m->biases, i, m->bias_bits);
            if (HTPW_ANY_FUSED) { /* the only one to ask */
                const uint32_t magnitude = bias < 0 ? 0u - (uint32_t)bias : (uint32_t)bias;
                out->bias_max = magnitude > out->bias_max ? magnitude : out->bias_max;
            }
            biases[i] = bias;
        }
        out->biases = biases;
    }
}

/* The matrices between a code and its tile, made ready in scratch; returns the widest vector between two of them. */
static uint32_t htpw_synth_layers(const struct htpw_model *model, const struct htpw_layout *layout, int32_t c,
                                  struct htpw_bump *bump, struct htpw_synth *s) {
    struct htpw_synth_job *job = &s->job;
    struct htpw_generator g;
    (void)htpw_generator_load(model, s->head.generator, &g); /* open has checked it */
    uint32_t widest = g.dz;
    job->dz = g.dz;
    for (uint32_t i = 0; i < g.layers + (uint32_t)s->head.stages; i++) {
        const int is_last = i + 1u == g.layers + (uint32_t)s->head.stages;
        const struct htpw_matrix *m = i < g.layers ? &g.layer[i] : &s->head.stage[i - g.layers];
        const int32_t most = is_last ? c : 127;
        htpw_stage_prepare(m, layout, i < g.layers ? 0 : -most, most, bump, &job->layer[i], &s->part[i]);
        widest = !is_last && m->rows > widest ? m->rows : widest;
        s->is_fused = HTPW_ANY_FUSED && s->is_fused && job->layer[i].is_packed;
        job->layers++;
    }
    return widest;
}

/* Lays out scratch for one head and returns the bytes used; fills it if `base` is not NULL. Kernels are made in [-c, c]. */
static HTPW_COLD uint32_t htpw_synth_prepare(const struct htpw_model *model, const struct htpw_backend_rule *rule,
                                             uint32_t index, int32_t c, uint8_t *base, struct htpw_synth *s) {
    struct htpw_bump bump = {base, 0};
    (void)htpw_head_load(model, index, &s->head); /* open has checked it */
    const uint32_t tile = s->head.tile;
    uint32_t widest = 0, part = tile < HTPW_SYNTH_BATCH ? tile : HTPW_SYNTH_BATCH;
    s->job.layers = 0;
    s->job.dz = 0;
    s->job.state = 0;
    s->is_fused = s->head.stages != 0 && s->head.entries == 0; /* ids would have to be looked up by the backend */
    if (!HTPW_WITH(CODEBOOK) || s->head.stages != 0) {
        widest = htpw_synth_layers(model, &rule->layout, c, &bump, s);
        part = s->part[s->job.layers - 1u].step;
    }
    s->group = HTPW_ANY_BLOCKS && rule->layout.in_block % 4u == 0 ? rule->layout.in_block : 4u;
    s->pitch = part < tile ? part : (tile + s->group - 1u) / s->group * s->group;
    s->tiles = HTPW_SYNTH_BATCH / tile & ~UINT32_C(1);
    s->tiles = s->tiles > HTPW_SYNTH_TILES_MAX ? HTPW_SYNTH_TILES_MAX : s->tiles;
    s->tiles = s->tiles >= 2u ? s->tiles : part < tile || s->head.is_whole ? 1u : 2u;
    s->weights = (int8_t *)htpw_bump_take(&bump, s->tiles * s->pitch);
    /* What the backend's synth needs lies where the kernels' vectors do, as either it or they run. */
    struct htpw_bump other = bump;
    if (HTPW_ANY_BLOCKS) {
        other.used = htpw_round16(other.used);
        s->job.scratch = htpw_bump_take(&other, rule->synth_bytes);
    }
    s->buffer[0] = (int8_t *)htpw_bump_take(&bump, s->tiles * widest);
    s->buffer[1] = (int8_t *)htpw_bump_take(&bump, s->tiles * widest);
    if (!HTPW_ANY_BLOCKS) {
        return htpw_round16(bump.used);
    }
    s->scratch = htpw_bump_take(&bump, htpw_backend_scratch(rule, widest));
    return htpw_round16(rule->synth_bytes != 0 && other.used > bump.used ? other.used : bump.used);
}

HTPW_COLD uint32_t htpw_synth_scratch(const struct htpw_model *model, int backend) {
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
    const int is_matrix = !HTPW_WITH(WINDOWS) || op->kind == HTPW_OP_CONV1X1 || op->kind == HTPW_OP_FC;
    return is_matrix ? &rule->layout : &htpw_backend_rule(HTPW_BACKEND_PORTABLE)->layout;
}

uint32_t htpw_kernel_bytes(const struct htpw_backend_rule *rule, const struct htpw_op *op) {
    return HTPW_WITH(NARROW) && op->is_narrow ? (op->weight_count + 1u) / 2u
                                              : htpw_layout_bytes(htpw_op_layout(rule, op), op->out.c, op->products);
}

HTPW_COLD void htpw_kernel_get(const struct htpw_backend_rule *rule, const struct htpw_op *op, const uint8_t *kernel,
                               int8_t *w) {
    if (HTPW_WITH(NARROW) && op->is_narrow) {
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
    int is_depthwise = htpw_op_is(op, DEPTHWISE);
    to->by_filter = HTPW_WITH(WINDOWS) && is_depthwise && op->codes != NULL;
    if (HTPW_WITH(NARROW) && op->is_narrow) {
        htpw_zero(kernel, (op->weight_count + 1u) / 2u);
    } else {
        htpw_layout_clear(to->layout, op->out.c, op->products, kernel);
    }
}

/* Weights first .. first + count - 1, in generation or stored order; those past the end of the kernel are dropped. */
HTPW_COLD static void htpw_sink_put(const struct htpw_sink *to, uint32_t first, uint32_t count, const int8_t *w) {
    const struct htpw_op *op = to->op;
    if (first >= op->weight_count) {
        return;
    }
    count = op->weight_count - first < count ? op->weight_count - first : count;
    if (!(HTPW_WITH(NARROW) && op->is_narrow) && !(HTPW_WITH(WINDOWS) && to->by_filter)) {
        if (HTPW_ANY_BLOCKS && to->layout->out_block == 1) { /* row-major */
            for (uint32_t k = 0; k < count; k++) {
                ((int8_t *)to->kernel)[first + k] = w[k];
            }
        } else {
            htpw_layout_put(to->layout, op->products, first, count, w, to->kernel);
        }
        return;
    }
    uint32_t k = 0;
    if (!to->by_filter && first % 2u == 0) { /* whole bytes, two weights each */
        uint8_t *p = to->kernel + first / 2u;
        for (; k + 2u <= count; k += 2u) {
            *p++ = (uint8_t)(((uint32_t)w[k] & 15u) | (uint32_t)w[k + 1u] << 4);
        }
    }
    for (; k < count; k++) {
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
    if (!(HTPW_WITH(NARROW) && to->op->is_narrow)) {
        htpw_layout_finish(to->layout, to->op->out.c, to->op->products, to->kernel);
    }
}

/* ---- making them ---- */

/* y[tiles][rows] of x[tiles][cols], for a matrix that lies packed in scratch. */
static void htpw_layer_run(const struct htpw_backend *backend, const struct htpw_synth_layer *layer, uint32_t tiles,
                           void *scratch, const int8_t *x, int8_t *y) {
    const struct htpw_requant q = {&layer->multiplier, &layer->shift, 0, 0, layer->act_min, layer->act_max};
    backend->packed((int32_t)tiles, layer->cols, layer->rows, &q, 0, x, layer->weights, layer->biases, scratch, y);
}

/* The same for a large one: row r of tile t goes to y[t * rows + r] or, with `to`, to weight first + t * rows + r of a
 * kernel, by way of y. */
static void htpw_layer_run_parts(const struct htpw_backend *backend, const struct htpw_synth_layer *layer,
                                 const struct htpw_part *part, uint32_t tiles, void *scratch, const int8_t *x,
                                 int8_t *y, const struct htpw_sink *to, uint32_t first) {
    const struct htpw_requant q = {&layer->multiplier, &layer->shift, 0, 0, layer->act_min, layer->act_max};
    const struct htpw_matrix *m = &part->matrix;
    struct htpw_stream stream;
    htpw_stream_start(&stream, m);
    for (uint32_t row = 0, n; row < m->rows; row += n) {
        const int8_t *w = (const int8_t *)m->weights;
        n = m->rows - row < part->step ? m->rows - row : part->step;
        if (part->rows != NULL) {
            htpw_stream_read(&stream, n * m->cols, part->rows);
            w = part->rows;
        } else {
            w += row * m->cols;
        }
        for (uint32_t t = 0; t < tiles; t++) {
            int8_t *out = to != NULL ? y : y + t * m->rows + row;
            backend->conv1x1(1, m->cols, (int32_t)n, &q, 0, x + t * m->cols, w,
                             layer->biases != NULL ? layer->biases + row : NULL, scratch, out);
            if (to != NULL) {
                htpw_sink_put(to, first + t * m->rows + row, n, out);
            }
        }
    }
}

/* Codes of some tiles, as int8: their own, or those of their entries. */
static void htpw_synth_codes(const struct htpw_op *op, const struct htpw_synth *s, uint32_t tile, uint32_t tiles) {
    const uint32_t dz = s->job.dz;
    if (!HTPW_WITH(CODEBOOK) || s->head.entries == 0) {
        htpw_values_read(op->codes, tile * dz, tiles * dz, op->code_bits, s->buffer[0]);
        return;
    }
    for (uint32_t t = 0; t < tiles; t++) {
        const uint32_t id = htpw_bits_unsigned(op->codes, tile + t, op->code_bits);
        htpw_values_read(s->head.table, id * dz, dz, s->head.entry_bits, s->buffer[0] + t * dz);
    }
}

/* Some tiles into the kernel, with the matrix products that inference uses. */
static void htpw_synth_plainly(const struct htpw_backend *backend, const struct htpw_op *op, const struct htpw_synth *s,
                               uint32_t tile, uint32_t tiles, const struct htpw_sink *to) {
    uint32_t from = 0, i = 0;
    htpw_synth_codes(op, s, tile, tiles);
    for (; i + 1u < s->job.layers; i++, from ^= 1u) {
        const struct htpw_synth_layer *layer = &s->job.layer[i];
        if (!HTPW_WITH(LARGE) || layer->is_packed) {
            htpw_layer_run(backend, layer, tiles, s->scratch, s->buffer[from], s->buffer[from ^ 1u]);
        } else {
            htpw_layer_run_parts(backend, layer, &s->part[i], tiles, s->scratch, s->buffer[from], s->buffer[from ^ 1u],
                                 NULL, 0);
        }
    }
    const uint32_t rows = s->head.tile;
    if (!HTPW_WITH(LARGE) || s->job.layer[i].is_packed) {
        htpw_layer_run(backend, &s->job.layer[i], tiles, s->scratch, s->buffer[from], s->weights);
        htpw_sink_put(to, tile * rows, tiles * rows, s->weights);
    } else {
        htpw_layer_run_parts(backend, &s->job.layer[i], &s->part[i], tiles, s->scratch, s->buffer[from], s->weights, to,
                             tile * rows);
    }
}

/* Some tiles by the backend's synth, through scratch; 0 if it cannot do them. */
static int htpw_synth_through(const struct htpw_backend *backend, struct htpw_synth *s, uint32_t tile, uint32_t tiles,
                              const struct htpw_sink *to) {
    const uint32_t rows = s->head.tile, at_once = s->pitch == rows ? tiles : 1u; /* tiles without gaps */
    int8_t *y[HTPW_SYNTH_TILES_MAX];
    for (uint32_t t = 0; t < tiles; t++) {
        y[t] = s->weights + t * s->pitch;
    }
    if (!s->is_fused || backend->synth == NULL || !backend->synth(&s->job, tile, tiles, y, s->group)) {
        return 0;
    }
    for (uint32_t t = 0; t < tiles; t += at_once) {
        htpw_sink_put(to, (tile + t) * rows, at_once * rows, s->weights + t * s->pitch);
    }
    return 1;
}

/* All tiles by the backend's synth straight into the kernel; returns how many that were, none if it cannot do it. For kernels of which each
 * row consists of whole tiles, and tiles of whole groups that the cache stores together. */
static uint32_t htpw_synth_direct(const struct htpw_backend *backend, struct htpw_synth *s, const struct htpw_sink *to,
                                  uint32_t all) {
    const struct htpw_layout *layout = to->layout;
    const uint32_t rows = s->head.tile, products = to->op->products, per_row = products / rows;
    const int is_flat = layout->bytes == 1 && layout->in_block == 1 && layout->out_block == 1; /* one long row */
    if (!s->is_fused || backend->synth == NULL || rows != s->pitch || layout->bytes != 1 || to->op->is_narrow ||
        to->by_filter || (is_flat ? to->op->weight_count : products) % rows != 0 ||
        !(is_flat || layout->in_block == s->group)) {
        return 0;
    }
    const uint32_t to_block = is_flat ? 0u : (products - s->group) * layout->out_block; /* from the last row of one */
    const uint32_t to_tile = rows * layout->out_block;
    int8_t *row = (int8_t *)to->kernel, *at = row;
    uint32_t left = is_flat ? all : per_row, left_of_block = layout->out_block;
    for (uint32_t tile = 0, tiles; tile < all; tile += tiles) {
        int8_t *y[HTPW_SYNTH_TILES_MAX];
        tiles = all - tile < HTPW_SYNTH_TILES_MAX ? all - tile : HTPW_SYNTH_TILES_MAX;
        for (uint32_t t = 0; t < tiles; t++) {
            y[t] = at;
            at += to_tile;
            if (--left == 0) {
                left = per_row;
                row += s->group;
                if (--left_of_block == 0) {
                    left_of_block = layout->out_block;
                    row += to_block;
                }
                at = row;
            }
        }
        if (!backend->synth(&s->job, tile, tiles, y, s->group * layout->out_block)) {
            return 0;
        }
    }
    return all;
}

/* Kernel of an operator whose source is a head with matrices. */
static void htpw_synth_tiles(const struct htpw_backend *backend, const struct htpw_op *op, struct htpw_synth *s,
                             const struct htpw_sink *to) {
    const uint32_t rows = s->head.tile, all = (op->weight_count + rows - 1u) / rows;
    if (HTPW_ANY_FUSED) {
        s->job.codes = op->codes;
        s->job.codes_end = op->codes + htpw_bits_bytes(op->code_count, op->code_bits);
        s->job.code_bits = op->code_bits;
    }
    for (uint32_t tile = HTPW_ANY_FUSED ? htpw_synth_direct(backend, s, to, all) : 0u, tiles; tile < all;
         tile += tiles) {
        tiles = all - tile < s->tiles ? all - tile : s->tiles;
        if (!HTPW_ANY_FUSED || !htpw_synth_through(backend, s, tile, tiles, to)) {
            htpw_synth_plainly(backend, op, s, tile, tiles, to);
        }
    }
}

/* Kernel of an operator whose tiles are entries of a stored table. */
static void htpw_synth_entries(const struct htpw_op *op, const struct htpw_synth *s, const struct htpw_sink *to) {
    const uint32_t rows = s->head.tile;
    for (uint32_t tile = 0; tile < op->code_count; tile++) {
        const uint32_t id = htpw_bits_unsigned(op->codes, tile, op->code_bits);
        for (uint32_t row = 0, n; row < rows; row += n) {
            n = rows - row < s->pitch ? rows - row : s->pitch;
            htpw_values_read(s->head.table, id * rows + row, n, s->head.entry_bits, s->weights);
            htpw_sink_put(to, tile * rows + row, n, s->weights);
        }
    }
}

/* Kernel of an operator that is stored in fewer bits than it is cached with. */
static void htpw_synth_stored(const struct htpw_op *op, const struct htpw_sink *to) {
    int8_t some[64];
    if (!op->is_narrow && to->layout->out_block == 1) { /* row-major as it is stored */
        htpw_values_read(op->weights, 0, op->weight_count, op->weight_bits, (int8_t *)to->kernel);
        return;
    }
    for (uint32_t done = 0, n; done < op->weight_count; done += n) {
        n = op->weight_count - done < sizeof some ? op->weight_count - done : (uint32_t)sizeof some;
        htpw_values_read(op->weights, done, n, op->weight_bits, some);
        htpw_sink_put(to, done, n, some);
    }
}

HTPW_COLD void htpw_synth_kernel(const struct htpw_model *model, const struct htpw_backend *backend,
                                 const struct htpw_op *op, struct htpw_synth *s, uint8_t *scratch, uint8_t *kernel) {
    struct htpw_sink to;
    htpw_sink_start(&to, htpw_backend_rule(backend->id), op, kernel);
    if (HTPW_ANY_CACHED_STORED && op->codes == NULL) {
        htpw_synth_stored(op, &to);
    } else if (HTPW_ANY_TILES) {
        const int with = HTPW_ANY_WIDE ? htpw_backend_synthesis(backend->id) : backend->id;
        const int is_narrow = HTPW_WITH(NARROW) && op->is_narrow;
        const uint32_t wanted = op->head * 2u + (uint32_t)is_narrow;
        const uint32_t span = HTPW_ANY_FUSED ? htpw_kernel_bytes(htpw_backend_rule(backend->id), op) : 0u;
        if (s->made_for != wanted ||
            (HTPW_ANY_FUSED && span > s->job.span)) { /* what a backend prepares may depend on the span */
            (void)htpw_synth_prepare(model, htpw_backend_rule(with), op->head, is_narrow ? 7 : 127, scratch, s);
            s->job.span = !HTPW_ANY_FUSED              ? 0u
                          : span > s->tiles * s->pitch ? span
                                                       : s->tiles * s->pitch; /* of the kernel or of s->weights */
            s->made_for = wanted;
        }
        if (!HTPW_WITH(CODEBOOK) || s->job.layers != 0) {
            htpw_synth_tiles(htpw_backend_get(with), op, s, &to);
        } else {
            htpw_synth_entries(op, s, &to);
        }
    }
    htpw_sink_finish(&to);
}
