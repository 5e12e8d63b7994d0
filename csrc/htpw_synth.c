/* Synthesis: codes -> generator -> head -> int8 kernel (docs/SPEC.md 4.5 to 5), made of the same fully connected kernel
 * that inference runs. Weights narrower than 8 bits and biases are unpacked once per kernel into scratch.
 */
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

/* One layer ready to run: int8 weights, int32 biases, requantisation. */
struct htpw_synth_layer {
    const int8_t *weights;
    const int32_t *biases;
    int32_t multiplier, shift;
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

static void htpw_layer_unpack(const struct htpw_generator_layer *layer, struct htpw_bump *bump,
                              struct htpw_synth_layer *out) {
    const uint32_t count = (uint32_t)layer->rows * layer->cols;
    out->weights = (const int8_t *)layer->weights;
    if (layer->weight_bits != 8) {
        int8_t *weights = (int8_t *)htpw_bump_take(bump, count);
        for (uint32_t i = 0; weights != NULL && i < count; i++) {
            weights[i] = (int8_t)htpw_bits_signed(layer->weights, i, layer->weight_bits);
        }
        out->weights = weights;
    }
    out->biases = NULL;
    if (layer->bias_bits != 0) {
        int32_t *biases = (int32_t *)(void *)htpw_bump_take(bump, 4u * layer->rows);
        for (uint32_t i = 0; biases != NULL && i < layer->rows; i++) {
            biases[i] = htpw_bits_signed(layer->biases, i, layer->bias_bits);
        }
        out->biases = biases;
    }
    out->multiplier = (int32_t)layer->multiplier << 16;
    out->shift = layer->shift;
}

struct htpw_synth {
    struct htpw_synth_layer generator[HTPW_GENERATOR_LAYERS_MAX], head;
    int8_t *buffer[2]; /* code or embedding: 255 bytes each, used in turn */
    int8_t *tile;      /* the weights of one tile, row-major, on their way into the cache's layout */
};

/* Lays out scratch for one head and returns the bytes used; fills it if `base` is not NULL. */
static uint32_t htpw_synth_prepare(const struct htpw_model *model, uint32_t head, uint8_t *base, struct htpw_synth *s) {
    struct htpw_bump bump = {base, 0};
    for (uint32_t i = 0; i < model->generator_layers; i++) {
        htpw_layer_unpack(&model->generator[i], &bump, &s->generator[i]);
    }
    htpw_layer_unpack(&model->head[head], &bump, &s->head);
    s->buffer[0] = (int8_t *)htpw_bump_take(&bump, 256);
    s->buffer[1] = (int8_t *)htpw_bump_take(&bump, 256);
    s->tile = (int8_t *)htpw_bump_take(&bump, model->head[head].rows);
    return htpw_round16(bump.used);
}

uint32_t htpw_synth_scratch(const struct htpw_model *model) {
    uint32_t most = 0;
    for (uint32_t i = 0; i < model->head_count; i++) {
        struct htpw_synth s;
        const uint32_t bytes = htpw_synth_prepare(model, i, NULL, &s);
        most = bytes > most ? bytes : most;
    }
    return most;
}

static void htpw_synth_fc(const struct htpw_synth_layer *layer, uint32_t cols, uint32_t rows, int32_t act_min,
                          const int8_t *x, int8_t *y) {
    const struct htpw_requant q = {&layer->multiplier, &layer->shift, 0, 0, act_min, 127};
    htpw_fully_connected_s8_ref(1, (int32_t)cols, (int32_t)rows, &q, 0, 0, x, layer->weights, layer->biases, y);
}

void htpw_synth_kernel(const struct htpw_model *model, const struct htpw_backend *backend, const struct htpw_op *op,
                       uint8_t *scratch, uint8_t *cache) {
    const struct htpw_generator_layer *head = &model->head[op->head];
    const struct htpw_layout *layout = htpw_op_layout(htpw_backend_rule(backend->id), op);
    uint8_t *kernel = cache + op->cache_offset;
    struct htpw_synth s;
    (void)htpw_synth_prepare(model, op->head, scratch, &s);
    htpw_layout_clear(layout, op->out.c, op->products, kernel);
    uint32_t code = 0;
    for (uint32_t done = 0; done < op->weight_count; done += head->rows) {
        const uint32_t left = op->weight_count - done;
        const uint32_t count = left < head->rows ? left : head->rows; /* the last tile is cut off */
        uint32_t from = 0;
        for (uint32_t i = 0; i < model->dz; i++) {
            s.buffer[0][i] = (int8_t)htpw_bits_signed(op->codes, code++, model->code_bits);
        }
        for (uint32_t i = 0; i < model->generator_layers; i++, from ^= 1u) {
            const struct htpw_generator_layer *layer = &model->generator[i];
            htpw_synth_fc(&s.generator[i], layer->cols, layer->rows, 0, s.buffer[from], s.buffer[from ^ 1u]);
        }
        htpw_synth_fc(&s.head, head->cols, count, -127, s.buffer[from], s.tile);
        htpw_layout_put(layout, op->products, done, count, s.tile, kernel);
    }
    htpw_layout_finish(layout, op->out.c, op->products, kernel);
}
