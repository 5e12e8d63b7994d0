/* Synthesis: codes -> generator -> head -> int8 kernel (docs/SPEC.md 4.5 to 5), made of the same matrix products that
 * inference runs, over several tiles at a time. Weights and biases of the generator and of the head are unpacked once per
 * kernel into scratch, small ones into the layout of the backend.
 */
#include "backends/armv81m_mve/htpw_mve.h"
#include "htpw_internal.h"

/* Reads one layer of the generator or a head; returns its bytes, 0 if the section is too short. */
static uint32_t htpw_layer_open(struct htpw_generator_layer *layer, const uint8_t *data, uint32_t left) {
    const uint32_t weights = htpw_bits_bytes((uint32_t)layer->rows * layer->cols, layer->weight_bits);
    const uint32_t biases = htpw_bits_bytes(layer->rows, layer->bias_bits);
    layer->weights = data;
    layer->biases = data + weights;
    return weights + biases <= left ? weights + biases : 0;
}

/* Value checks of one layer: docs/SPEC.md 4.5, 4.6 and the bound of section 7 for an input offset of 0. */
static int htpw_layer_check(const struct htpw_generator_layer *layer) {
    int64_t bias_max = 0;
    for (uint32_t i = 0; i < layer->rows; i++) {
        const int64_t bias = htpw_bits_signed(layer->biases, i, layer->bias_bits);
        bias_max = bias > bias_max ? bias : -bias > bias_max ? -bias : bias_max;
    }
    const uint64_t bound = (uint64_t)layer->cols * (128u * 128u) + (uint64_t)bias_max;
    const uint32_t left = layer->shift > 0 ? (uint32_t)layer->shift : 0u;
    if (bound >= HTPW_ACC_LIMIT || (bound << left) >= HTPW_ACC_LIMIT) {
        return HTPW_ERR_OVERFLOW;
    }
    return htpw_bits_tail_is_zero(layer->weights, (uint32_t)layer->rows * layer->cols, layer->weight_bits) &&
                   htpw_bits_tail_is_zero(layer->biases, layer->rows, layer->bias_bits)
               ? HTPW_OK
               : HTPW_ERR_DATA;
}

static int htpw_width_is_valid(uint32_t bits) { return bits == 4 || bits == 6 || bits == 8; }

static int htpw_layer_is_valid(const struct htpw_generator_layer *layer) {
    return htpw_width_is_valid(layer->weight_bits) && layer->bias_bits <= 32 && layer->shift >= -31 &&
           layer->shift <= 30 && layer->multiplier <= 32767;
}

static int htpw_generator_section(struct htpw_model *model, struct htpw_span section) {
    const uint8_t *p = section.data, *end = section.data + section.length;
    if (section.length == 0) {
        return HTPW_OK;
    }
    if (section.length < 4 || p[0] == 0 || p[0] > HTPW_GENERATOR_LAYERS_MAX || p[2] == 0 || p[3] != 0) {
        return HTPW_ERR_SOURCE;
    }
    model->generator_layers = p[0];
    model->code_bits = p[1];
    model->dz = p[2];
    if (!htpw_width_is_valid(model->code_bits)) {
        return HTPW_ERR_RANGE;
    }
    p += 4;
    uint16_t cols = model->dz;
    for (uint32_t i = 0; i < model->generator_layers; i++) {
        struct htpw_generator_layer *layer = &model->generator[i];
        if (end - p < 6) {
            return HTPW_ERR_DATA;
        }
        layer->rows = p[0];
        layer->cols = cols;
        layer->weight_bits = p[1];
        layer->bias_bits = p[2];
        layer->shift = htpw_load_i8(p + 3);
        layer->multiplier = htpw_load_u16(p + 4);
        if (layer->rows == 0) {
            return HTPW_ERR_SHAPE;
        }
        if (!htpw_layer_is_valid(layer)) {
            return HTPW_ERR_RANGE;
        }
        const uint32_t bytes = htpw_layer_open(layer, p + 6, (uint32_t)(end - p) - 6u);
        if (bytes == 0) {
            return HTPW_ERR_DATA;
        }
        const int error = htpw_layer_check(layer);
        if (error != HTPW_OK) {
            return error;
        }
        p += 6u + bytes;
        cols = layer->rows;
    }
    return p == end ? HTPW_OK : HTPW_ERR_DATA;
}

static int htpw_head_section(struct htpw_model *model, struct htpw_span section) {
    const uint8_t *p = section.data, *end = section.data + section.length;
    if (section.length == 0) {
        return HTPW_OK;
    }
    if (model->generator_layers == 0 || section.length < 2 || p[0] == 0 || p[0] > HTPW_HEADS_MAX || p[1] != 0) {
        return HTPW_ERR_SOURCE;
    }
    model->head_count = p[0];
    p += 2;
    for (uint32_t i = 0; i < model->head_count; i++) {
        struct htpw_generator_layer *head = &model->head[i];
        if (end - p < 8) {
            return HTPW_ERR_DATA;
        }
        if (p[0] != HTPW_SOURCE_TILED || p[5] != 0) {
            return HTPW_ERR_SOURCE;
        }
        head->weight_bits = p[1];
        head->rows = htpw_load_u16(p + 2);
        head->cols = model->generator[model->generator_layers - 1u].rows;
        head->shift = htpw_load_i8(p + 4);
        head->multiplier = htpw_load_u16(p + 6);
        if (head->rows == 0 || head->rows > 1024) {
            return HTPW_ERR_SHAPE;
        }
        if (!htpw_layer_is_valid(head)) {
            return HTPW_ERR_RANGE;
        }
        const uint32_t bytes = htpw_layer_open(head, p + 8, (uint32_t)(end - p) - 8u);
        if (bytes == 0) {
            return HTPW_ERR_DATA;
        }
        const int error = htpw_layer_check(head);
        if (error != HTPW_OK) {
            return error;
        }
        p += 8u + bytes;
    }
    return p == end ? HTPW_OK : HTPW_ERR_DATA;
}

int htpw_generator_open(struct htpw_model *model, struct htpw_span generator, struct htpw_span heads) {
    const int error = htpw_generator_section(model, generator);
    return error != HTPW_OK ? error : htpw_head_section(model, heads);
}

/* Tiles are made several at a time, so that a backend can share its loads between them. */
#define HTPW_SYNTH_BATCH 512u    /* weights that pass through scratch: tiles are fewer if they are large, but at least two */
#define HTPW_SYNTH_PACKED 4096u  /* bytes of a layer or head that is worth a copy in the layout of the backend */

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

/* Row-major weights of a layer into the layout of the backend; narrow ones a few at a time. */
static void htpw_layer_pack(const struct htpw_generator_layer *layer, const struct htpw_layout *layout, void *packed) {
    const uint32_t count = (uint32_t)layer->rows * layer->cols;
    int8_t some[64];
    htpw_layout_clear(layout, layer->rows, layer->cols, packed);
    if (layer->weight_bits == 8) {
        htpw_layout_put(layout, layer->cols, 0, count, (const int8_t *)layer->weights, packed);
    } else {
        for (uint32_t done = 0, n; done < count; done += n) {
            n = count - done < sizeof some ? count - done : (uint32_t)sizeof some;
            htpw_values_read(layer->weights, done, n, layer->weight_bits, some);
            htpw_layout_put(layout, layer->cols, done, n, some, packed);
        }
    }
#ifndef HTPW_HAS_ARMV81M_MVE /* Helium multiplies row sums by the input offset, which synthesis has not */
    htpw_layout_finish(layout, layer->rows, layer->cols, packed);
#endif
}

static void htpw_layer_unpack(const struct htpw_generator_layer *layer, const struct htpw_layout *layout,
                              struct htpw_bump *bump, struct htpw_synth_layer *out) {
    const uint32_t count = (uint32_t)layer->rows * layer->cols;
    const uint32_t bytes = htpw_layout_bytes(layout, layer->rows, layer->cols);
    out->rows = layer->rows;
    out->cols = layer->cols;
    out->weights = layer->weights;
    out->is_packed = layout->out_block != 1 && bytes <= HTPW_SYNTH_PACKED;
    if (out->is_packed) {
        void *packed = htpw_bump_take(bump, bytes);
        if (packed != NULL) {
            htpw_layer_pack(layer, layout, packed);
        }
        out->weights = packed;
    } else if (layer->weight_bits != 8) {
        int8_t *weights = (int8_t *)htpw_bump_take(bump, count);
        if (weights != NULL) {
            htpw_values_read(layer->weights, 0, count, layer->weight_bits, weights);
        }
        out->weights = weights;
    }
    out->biases = NULL;
    out->bias_max = 0;
    if (layer->bias_bits != 0) {
        int32_t *biases = (int32_t *)(void *)htpw_bump_take(bump, 4u * layer->rows);
        for (uint32_t i = 0; biases != NULL && i < layer->rows; i++) {
            const int32_t bias = htpw_bits_signed(layer->biases, i, layer->bias_bits);
            const uint32_t absolute = bias < 0 ? 0u - (uint32_t)bias : (uint32_t)bias;
            out->bias_max = absolute > out->bias_max ? absolute : out->bias_max;
            biases[i] = bias;
        }
        out->biases = biases;
    }
    out->multiplier = (int32_t)layer->multiplier << 16;
    out->shift = layer->shift;
    out->act_min = 0;
    out->act_max = 127;
}

struct htpw_synth {
    struct htpw_synth_job job;
    uint32_t tiles;    /* made at one time, if they pass through scratch */
    uint32_t pitch;    /* of tiles in scratch */
    uint32_t group;    /* weights that struct htpw_backend.synth stores together */
    int8_t *buffer[2]; /* codes or embeddings of all of them, used in turn */
    int8_t *weights;   /* row-major, on their way into the cache's layout */
    void *scratch;     /* of the backend's kernels */
};

/* Lays out scratch for one head and returns the bytes used; fills it if `base` is not NULL. */
static uint32_t htpw_synth_prepare(const struct htpw_model *model, const struct htpw_backend_rule *rule, uint32_t head,
                                   uint8_t *base, struct htpw_synth *s) {
    struct htpw_bump bump = {base, 0};
    const uint32_t rows = model->head[head].rows;
    uint32_t widest = model->dz;
    for (uint32_t i = 0; i < model->generator_layers; i++) {
        htpw_layer_unpack(&model->generator[i], &rule->layout, &bump, &s->job.layer[i]);
        widest = model->generator[i].rows > widest ? model->generator[i].rows : widest;
    }
    htpw_layer_unpack(&model->head[head], &rule->layout, &bump, &s->job.layer[model->generator_layers]);
    s->job.layer[model->generator_layers].act_min = -127;
    s->job.layers = model->generator_layers + 1u;
    s->job.code_bits = model->code_bits;
    s->job.dz = model->dz;
    s->job.state = 0;
    s->group = rule->layout.in_block % 4u == 0 ? rule->layout.in_block : 4u;
    s->pitch = (rows + s->group - 1u) / s->group * s->group;
    s->tiles = HTPW_SYNTH_BATCH / rows & ~UINT32_C(1);
    s->tiles = s->tiles < 2u ? 2u : s->tiles > HTPW_SYNTH_TILES_MAX ? HTPW_SYNTH_TILES_MAX : s->tiles;
    s->weights = (int8_t *)htpw_bump_take(&bump, s->tiles * s->pitch);
    /* what the backend's synth needs lies where the kernels' vectors do, as either it or they run */
    struct htpw_bump other = bump;
    other.used = htpw_round16(other.used);
    s->job.scratch = htpw_bump_take(&other, rule->synth_bytes);
    s->buffer[0] = (int8_t *)htpw_bump_take(&bump, s->tiles * widest);
    s->buffer[1] = (int8_t *)htpw_bump_take(&bump, s->tiles * widest);
    s->scratch = htpw_bump_take(&bump, htpw_backend_scratch(rule, widest));
    return htpw_round16(rule->synth_bytes != 0 && other.used > bump.used ? other.used : bump.used);
}

uint32_t htpw_synth_scratch(const struct htpw_model *model, int backend) {
    const struct htpw_backend_rule *rule = htpw_backend_rule(htpw_backend_synthesis(backend));
    uint32_t most = 0;
    for (uint32_t i = 0; i < model->head_count; i++) {
        struct htpw_synth s;
        const uint32_t bytes = htpw_synth_prepare(model, rule, i, NULL, &s);
        most = bytes > most ? bytes : most;
    }
    return most;
}

/* y[tiles][rows] of x[tiles][cols]. */
static void htpw_synth_run(const struct htpw_backend *backend, const struct htpw_synth_layer *layer, int32_t tiles,
                           void *scratch, const int8_t *x, int8_t *y) {
    const struct htpw_requant q = {&layer->multiplier, &layer->shift, 0, 0, layer->act_min, layer->act_max};
    if (layer->is_packed) {
        backend->packed(tiles, layer->cols, layer->rows, &q, 0, x, layer->weights, layer->biases, scratch, y);
    } else {
        backend->conv1x1(tiles, layer->cols, layer->rows, &q, 0, x, (const int8_t *)layer->weights, layer->biases,
                         scratch, y);
    }
}

/* Some tiles to s->weights, one after another, with the matrix products that inference uses. */
static void htpw_synth_plainly(const struct htpw_backend *backend, const struct htpw_synth *s, uint32_t tile,
                               uint32_t tiles) {
    const struct htpw_synth_job *job = &s->job;
    uint32_t from = 0;
    htpw_values_read(job->codes, tile * job->dz, tiles * job->dz, job->code_bits, s->buffer[0]);
    for (uint32_t i = 0; i < job->layers; i++, from ^= 1u) {
        int8_t *y = i == job->layers - 1u ? s->weights : s->buffer[from ^ 1u];
        htpw_synth_run(backend, &job->layer[i], (int32_t)tiles, s->scratch, s->buffer[from], y);
    }
}

/* Some tiles to s->weights and from there into the cache. */
static void htpw_synth_through(const struct htpw_backend *backend, struct htpw_synth *s, const struct htpw_op *op,
                               const struct htpw_layout *layout, uint32_t tile, uint32_t tiles, uint8_t *kernel) {
    const uint32_t rows = (uint32_t)s->job.layer[s->job.layers - 1u].rows;
    uint32_t pitch = s->pitch;
    int8_t *y[HTPW_SYNTH_TILES_MAX];
    for (uint32_t t = 0; t < tiles; t++) {
        y[t] = s->weights + t * pitch;
    }
    if (backend->synth == NULL || !backend->synth(&s->job, tile, tiles, y, s->group)) {
        htpw_synth_plainly(backend, s, tile, tiles);
        pitch = rows;
    }
    const uint32_t at_once = pitch == rows ? tiles : 1u; /* tiles without gaps */
    for (uint32_t t = 0; t < tiles; t += at_once) {
        const uint32_t done = (tile + t) * rows, left = op->weight_count - done; /* the last tile is cut off */
        const uint32_t count = left < at_once * rows ? left : at_once * rows;
        htpw_layout_put(layout, op->products, done, count, s->weights + t * pitch, kernel);
    }
}

/* All tiles straight into the cache; returns how many that were, none if the backend cannot do it. For kernels of which each
 * row consists of whole tiles, and tiles of whole groups that the cache stores together. */
static uint32_t htpw_synth_direct(const struct htpw_backend *backend, struct htpw_synth *s, const struct htpw_op *op,
                                  const struct htpw_layout *layout, uint32_t all, uint8_t *kernel) {
    const uint32_t rows = (uint32_t)s->job.layer[s->job.layers - 1u].rows, per_row = op->products / rows;
    const int is_flat = layout->bytes == 1 && layout->in_block == 1 && layout->out_block == 1; /* one long row */
    if (backend->synth == NULL || rows != s->pitch || layout->bytes != 1 ||
        (is_flat ? op->weight_count : op->products) % rows != 0 || !(is_flat || layout->in_block == s->group)) {
        return 0;
    }
    const uint32_t to_block = is_flat ? 0u : (op->products - s->group) * layout->out_block; /* from the last row of one */
    const uint32_t to_tile = rows * layout->out_block;
    int8_t *row = (int8_t *)kernel, *at = row;
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

void htpw_synth_kernel(const struct htpw_model *model, const struct htpw_backend *backend, const struct htpw_op *op,
                       uint8_t *scratch, uint8_t *cache) {
    const struct htpw_layout *layout = htpw_op_layout(htpw_backend_rule(backend->id), op);
    const int with = htpw_backend_synthesis(backend->id);
    uint8_t *kernel = cache + op->cache_offset;
    struct htpw_synth s;
    (void)htpw_synth_prepare(model, htpw_backend_rule(with), op->head, scratch, &s);
    backend = htpw_backend_get(with);
    const uint32_t rows = (uint32_t)s.job.layer[s.job.layers - 1u].rows, all = (op->weight_count + rows - 1u) / rows;
    const uint32_t span = htpw_layout_bytes(layout, op->out.c, op->products), buffer = s.tiles * s.pitch;
    s.job.span = span > buffer ? span : buffer; /* of the cache or of s.weights */
    s.job.codes = op->codes;
    s.job.codes_end = op->codes + htpw_bits_bytes(all * model->dz, model->code_bits);
    htpw_layout_clear(layout, op->out.c, op->products, kernel);
    for (uint32_t tile = htpw_synth_direct(backend, &s, op, layout, all, kernel), tiles; tile < all; tile += tiles) {
        tiles = all - tile < s.tiles ? all - tile : s.tiles;
        htpw_synth_through(backend, &s, op, layout, tile, tiles, kernel);
    }
    htpw_layout_finish(layout, op->out.c, op->products, kernel);
}
