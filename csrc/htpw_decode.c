/* The operator decoder: records of OPS, one after the other, with the parts of QUAN, WGHT and CODE that belong to them.
 * What is special to operators without weights is in htpw_decode_plain.c.
 *
 * Every length is checked against its section before a pointer into it is made. All sizes are bounded by 2^22 elements
 * per tensor, so sums and products below stay inside 32 bits; the two that could leave it are formed in 64.
 */
#include "htpw_internal.h"

int htpw_cursor_start(const struct htpw_model *model, const struct htpw_backend_rule *rule, enum htpw_walk walk,
                      struct htpw_cursor *cursor) {
    htpw_zero(cursor, sizeof *cursor);
    cursor->rule = rule;
    cursor->walk = walk;
    const uint8_t *p = model->ops.data;
    if (model->ops.length < 8) {
        return HTPW_ERR_DATA;
    }
    struct htpw_tensor *input = &cursor->slot[0];
    input->h = htpw_load_u16(p);
    input->w = htpw_load_u16(p + 2);
    input->c = htpw_load_u16(p + 4);
    input->zero_point = htpw_load_i8(p + 6);
    input->written = 1;
    cursor->ops = 8;
    if (input->h == 0 || input->w == 0 || input->c == 0 || (uint64_t)input->h * input->w * input->c > HTPW_TENSOR_MAX) {
        return HTPW_ERR_SHAPE;
    }
    return HTPW_OK;
}

/* Bytes of a multiplier by its form: docs/SPEC.md 4.3. */
static const uint8_t htpw_multiplier_bytes[3] = {2, 1, 4};

/* Bytes 5..11 of a linear operator's record, and its part of QUAN. */
static int htpw_decode_linear(const struct htpw_model *model, struct htpw_cursor *cursor, const uint8_t *record,
                              struct htpw_op *op) {
    struct htpw_quant_view *q = &op->quant;
    const uint8_t form = record[9];
    op->source = record[5] & 15u;
    op->code_bits = record[5] >> 4 & 3u;
    op->is_narrow = record[5] >> 7;
    op->out.c = htpw_load_u16(record + 6);
    op->head = record[11];
    q->shift_base = htpw_load_i8(record + 8);
    q->shift_bits = form & 7u;
    q->form = form >> 3 & 3u;
    q->bias_bits = record[10];
    if ((form & 0x60u) != 0 || q->form > 2 || q->shift_bits > 5 || q->bias_bits > 32) {
        return HTPW_ERR_RANGE;
    }
    if ((record[5] & 0x40u) != 0) {
        return HTPW_ERR_SOURCE;
    }
    if (op->out.c == 0) {
        return HTPW_ERR_SHAPE;
    }
    q->channels = op->out.c;
    q->count = (form & 0x80u) != 0 ? 1u : q->channels;
    const uint32_t multipliers = htpw_multiplier_bytes[q->form] * q->count;
    const uint32_t shifts = htpw_bits_bytes(q->count, q->shift_bits);
    const uint32_t all = multipliers + shifts + htpw_bits_bytes(q->channels, q->bias_bits);
    q->multipliers = htpw_take(model->quant, &cursor->quant, all);
    if (q->multipliers == NULL) {
        return HTPW_ERR_DATA;
    }
    const int error = HTPW_WITH(PACKS) ? htpw_pack_part(model, cursor, HTPW_PART_QUAN, all, &q->multipliers) : HTPW_OK;
    q->shifts = q->multipliers + multipliers;
    q->biases = q->shifts + shifts;
    return error;
}

/* Bytes 12..23 of a conv or depthwise record. */
static int htpw_decode_spatial(const uint8_t *record, struct htpw_op *op) {
    struct htpw_window *g = &op->window;
    op->out.h = htpw_load_u16(record + 12);
    op->out.w = htpw_load_u16(record + 14);
    g->k_h = record[16];
    g->k_w = record[17];
    g->stride_h = record[18];
    g->stride_w = record[19];
    g->pad_top = record[20];
    g->pad_left = record[21];
    g->dil_h = record[22];
    g->dil_w = record[23];
    return g->k_h && g->k_w && g->stride_h && g->stride_w && g->dil_h && g->dil_w ? HTPW_OK : HTPW_ERR_SHAPE;
}

/* Bits of a stored weight; 0 if the source is not a stored kernel, an error if it was left out. */
static int htpw_stored_bits(uint32_t source) {
    switch (source) {
#define HTPW_STORED_CASE(name, id, bits)                                                                               \
    case id:                                                                                                           \
        return HTPW_WITH(name) ? (bits) : HTPW_LEFT_OUT_SOURCE(id);
        HTPW_STORED(HTPW_STORED_CASE)
#undef HTPW_STORED_CASE
    default:
        return 0;
    }
}

const uint8_t *htpw_take_weights(const struct htpw_model *model, struct htpw_cursor *cursor, uint32_t align,
                                 uint32_t bytes) {
    const uint32_t gap = (0u - cursor->weights) % align; /* a power of 2 */
    const uint8_t *skipped = htpw_take(model->weights, &cursor->weights, gap);
    for (uint32_t i = 0; skipped != NULL && i < gap; i++) {
        if (skipped[i] != 0) {
            return NULL;
        }
    }
    return skipped != NULL ? htpw_take(model->weights, &cursor->weights, bytes) : NULL;
}

static int htpw_decode_stored(const struct htpw_model *model, struct htpw_cursor *cursor, uint32_t bits,
                              struct htpw_op *op) {
    op->weights = htpw_take_weights(model, cursor, bits == 8 ? 4u : 1u, htpw_bits_bytes(op->weight_count, bits));
    op->weight_bits = (uint8_t)bits;
    if (op->head != 0 || op->code_bits != 0 || (op->is_narrow && bits == 8)) {
        return HTPW_ERR_SOURCE;
    }
    return op->weights != NULL ? HTPW_OK : HTPW_ERR_DATA;
}

/* Codes or ids of an operator: how many, of which width, and where. */
static HTPW_COLD int htpw_decode_codes(const struct htpw_model *model, struct htpw_cursor *cursor, struct htpw_op *op) {
    struct htpw_head head;
    struct htpw_generator generator;
    int error = htpw_head_load(model, op->head, &head);
    if (error != HTPW_OK || head.kind != op->source || (head.is_whole && head.tile != op->weight_count)) {
        return HTPW_ERR_SOURCE;
    }
    const uint32_t tiles = (op->weight_count + head.tile - 1u) / head.tile;
    uint32_t dz = 1;
    if (head.entries != 0) {
        if (op->code_bits != 0 || (op->is_narrow && head.stages == 0 && head.entry_bits > 4)) {
            return HTPW_ERR_SOURCE;
        }
        for (uint32_t most = head.entries - 1u; most != 0; most >>= 1) {
            op->code_bits++;
        }
    } else {
        error = htpw_generator_load(model, head.generator, &generator);
        if (error != HTPW_OK || op->code_bits == 0) {
            return HTPW_ERR_SOURCE;
        }
        dz = generator.dz;
        op->code_bits = (uint8_t)(2u + 2u * op->code_bits);
    }
    const uint64_t bits = (uint64_t)tiles * dz * op->code_bits; /* up to 2^35 */
    if (bits > UINT64_C(8) * (model->codes.length - cursor->codes)) {
        return HTPW_ERR_DATA;
    }
    const uint32_t bytes = (uint32_t)((bits + 7u) / 8u); /* of a section: values and bits below 2^30 */
    op->code_count = tiles * dz;
    op->codes = htpw_take(model->codes, &cursor->codes, bytes);
    if (op->codes == NULL) {
        return HTPW_ERR_DATA;
    }
    return HTPW_WITH(PACKS) ? htpw_pack_part(model, cursor, HTPW_PART_CODE, bytes, &op->codes) : HTPW_OK;
}

/* The weights of a linear operator: where they are stored, or the codes that make them, and their place in the cache. */
static int htpw_decode_weights(const struct htpw_model *model, struct htpw_cursor *cursor, struct htpw_op *op) {
    const int bits = htpw_stored_bits(op->source);
    if (bits != 0) {
        const int error = bits < 0 ? bits : htpw_decode_stored(model, cursor, (uint32_t)bits, op);
        if (error != HTPW_OK) {
            return error;
        }
    } else if (cursor->walk == HTPW_WALK_SYNTHESIS) {
        const int error = htpw_decode_codes(model, cursor, op);
        if (error != HTPW_OK) {
            return error;
        }
    }
    op->is_cached = bits != 8 && !(bits == 4 && op->is_narrow);
    if (!op->is_cached) {
        return HTPW_OK;
    }
    const uint32_t bytes = htpw_kernel_bytes(cursor->rule, op);
    if (cursor->layer >= HTPW_CACHED_MAX) {
        return HTPW_ERR_SOURCE;
    }
    if (bytes > HTPW_CACHE_MAX - cursor->cache) { /* a hostile image: blocks of the layout filled up with zeros */
        return HTPW_ERR_CACHE;
    }
    op->layer = cursor->layer++;
    op->cache_offset = cursor->cache;
    cursor->cache += htpw_round16(bytes);
    return HTPW_OK;
}

/* Products per sum and weights of a linear operator, from its shapes; also its window. */
static int htpw_linear_shape(const uint8_t *record, struct htpw_op *op) {
    struct htpw_window *g = &op->window;
    uint64_t per_output; /* weights per output channel */
    if (htpw_op_is(op, CONV)) {
        g->groups = htpw_load_u16(record + 24);
        if (g->groups == 0 || op->in.c % g->groups != 0 || op->out.c % g->groups != 0) {
            return HTPW_ERR_SHAPE;
        }
        per_output = (uint64_t)g->k_h * (uint64_t)g->k_w * (uint64_t)(op->in.c / g->groups);
    } else if (htpw_op_is(op, DEPTHWISE)) {
        if (op->out.c % op->in.c != 0) {
            return HTPW_ERR_SHAPE;
        }
        g->groups = 1;
        per_output = (uint64_t)g->k_h * (uint64_t)g->k_w;
    } else if (htpw_op_is(op, CONV1X1)) {
        op->out.h = op->in.h;
        op->out.w = op->in.w;
        per_output = op->in.c;
    } else { /* fc */
        op->out.h = op->out.w = 1;
        per_output = htpw_tensor_size(&op->in);
    }
    if (per_output * op->out.c > HTPW_TENSOR_MAX) {
        return HTPW_ERR_SHAPE;
    }
    op->products = (uint32_t)per_output;
    op->weight_count = (uint32_t)per_output * op->out.c;
    return HTPW_OK;
}

/* Bytes of the record of an operator, or an error. */
static int htpw_record_bytes(uint8_t kind) {
    switch (kind) {
#define HTPW_RECORD_CASE(name, id, bytes)                                                                              \
    case id:                                                                                                           \
        return HTPW_WITH(name) ? (bytes) : HTPW_LEFT_OUT_OPERATOR(id);
        HTPW_OPERATORS(HTPW_RECORD_CASE)
#undef HTPW_RECORD_CASE
    default:
        return HTPW_ERR_OPERATOR;
    }
}

int htpw_cursor_next(const struct htpw_model *model, struct htpw_cursor *cursor, struct htpw_op *op) {
    if (cursor->index == model->operator_count) {
        return 0;
    }
    if (cursor->ops >= model->ops.length) {
        return HTPW_ERR_DATA;
    }
    htpw_zero(op, sizeof *op);
    op->index = cursor->index;
    op->kind = model->ops.data[cursor->ops];
    const int bytes = htpw_record_bytes(op->kind);
    if (bytes < 0) {
        return bytes;
    }
    const uint8_t *record = htpw_take(model->ops, &cursor->ops, (uint32_t)bytes);
    if (record == NULL) {
        return HTPW_ERR_DATA;
    }
    op->slot_in = record[1] & 15u;
    op->slot_out = record[1] >> 4;
    if (op->slot_in >= HTPW_SLOTS || !cursor->slot[op->slot_in].written || op->slot_out == 0 ||
        op->slot_out >= HTPW_SLOTS || op->slot_out == op->slot_in) {
        return HTPW_ERR_SLOT;
    }
    op->in = cursor->slot[op->slot_in];
    op->out.zero_point = htpw_load_i8(record + 2);
    op->act_min = htpw_load_i8(record + 3);
    op->act_max = htpw_load_i8(record + 4);
    if (op->act_min > op->act_max) {
        return HTPW_ERR_RANGE;
    }

    int error = HTPW_OK;
    if (HTPW_ANY_PLAIN && op->kind >= HTPW_OP_ADD) {
        error = htpw_decode_plain(model, cursor, record, op);
    } else {
        error = htpw_decode_linear(model, cursor, record, op);
        if (error == HTPW_OK && (htpw_op_is(op, CONV) || htpw_op_is(op, DEPTHWISE))) {
            error = htpw_decode_spatial(record, op);
        }
        if (error == HTPW_OK) {
            error = htpw_linear_shape(record, op);
        }
        if (error == HTPW_OK) {
            error = htpw_decode_weights(model, cursor, op);
        }
    }
    if (error != HTPW_OK) {
        return error;
    }
    if (op->out.h == 0 || op->out.w == 0 || (uint64_t)op->out.h * op->out.w * op->out.c > HTPW_TENSOR_MAX) {
        return HTPW_ERR_SHAPE;
    }
    struct htpw_window *g = &op->window;
    g->n = 1;
    g->in_h = op->in.h;
    g->in_w = op->in.w;
    g->in_c = op->in.c;
    g->out_h = op->out.h;
    g->out_w = op->out.w;
    g->out_c = op->out.c;
    op->out.written = 1;
    cursor->slot[op->slot_out] = op->out;
    error = HTPW_WITH(PACKS) ? htpw_pack_step(model, cursor, op) : HTPW_OK;
    cursor->index++;
    return error == HTPW_OK ? 1 : error;
}

/* The CMSIS-NN multiplier of channel i. */
static uint32_t htpw_quant_multiplier(const struct htpw_quant_view *q, uint32_t i) {
    const uint8_t *p = q->multipliers + htpw_multiplier_bytes[q->form] * i;
    return q->form == 0 ? (uint32_t)htpw_load_u16(p) << 16 : q->form == 1 ? (256u + *p) << 22 : htpw_load_u32(p);
}

HTPW_COLD int htpw_quant_check(const struct htpw_op *op) {
    const struct htpw_quant_view *q = &op->quant;
    int32_t shift_max = -31;
    for (uint32_t i = 0; i < q->count; i++) {
        const int32_t shift = q->shift_base + (int32_t)htpw_bits_unsigned(q->shifts, i, q->shift_bits);
        if (htpw_quant_multiplier(q, i) > INT32_MAX || shift < -31 || shift > 30) {
            return HTPW_ERR_RANGE;
        }
        shift_max = shift > shift_max ? shift : shift_max;
    }
    uint32_t bias_max = 0;
    for (uint32_t i = 0; i < q->channels; i++) {
        const int32_t bias = htpw_bits_signed(q->biases, i, q->bias_bits);
        const uint32_t magnitude = bias < 0 ? 0u - (uint32_t)bias : (uint32_t)bias;
        bias_max = magnitude > bias_max ? magnitude : bias_max;
    }
    const uint64_t bound = (uint64_t)op->products * (255u * 128u) + bias_max;
    const uint32_t left = shift_max > 0 ? (uint32_t)shift_max : 0u;
    if (bound >= HTPW_ACC_LIMIT || (bound << left) >= HTPW_ACC_LIMIT) {
        return HTPW_ERR_OVERFLOW;
    }
    return htpw_bits_tail_is_zero(q->shifts, q->count, q->shift_bits) &&
                   htpw_bits_tail_is_zero(q->biases, q->channels, q->bias_bits)
               ? HTPW_OK
               : HTPW_ERR_DATA;
}

uint32_t htpw_op_scratch(const struct htpw_backend_rule *rule, const struct htpw_op *op) {
    if (htpw_op_is(op, ATTEND)) {
        return htpw_round16((uint32_t)op->in.h * op->in.w);
    }
    const uint32_t kernel = !HTPW_ANY_BLOCKS            ? 0u
                            : htpw_op_is(op, DEPTHWISE) ? htpw_backend_depthwise_scratch(rule, op->products, op->out.c)
                                                        : htpw_backend_scratch(rule, op->products);
    return op->products != 0 ? htpw_op_quant_bytes(op) + htpw_round16(kernel) : 0u;
}

/* n fields of 0 .. 32 bits plus `base`, one after the other: signed if `sign` is 2^31, else 0. */
static void htpw_fields_read(const uint8_t *p, uint32_t n, uint32_t bits, uint32_t sign, int32_t base, int32_t *out) {
    const uint32_t mask = bits != 0 ? UINT32_MAX >> (32u - bits) : 0u;
    uint32_t held = 0, have = 0; /* what has been read of the next field: less than 8 bits, or a whole field and more */
    sign = bits != 0 ? sign >> (32u - bits) : 0u;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t value = held;
        if (have >= bits) {
            held >>= bits;
        } else {
            do {
                held = *p++;
                value |= held << have;
                have += 8u;
            } while (have < bits);
            held >>= 8u - (have - bits);
        }
        have -= bits;
        out[i] = (int32_t)(((value & mask) ^ sign) - sign) + base;
    }
}

void htpw_quant_expand(const struct htpw_quant_view *q, int32_t *out) {
    for (uint32_t i = 0; i < q->count; i++) {
        *out++ = (int32_t)htpw_quant_multiplier(q, i);
    }
    htpw_fields_read(q->shifts, q->count, q->shift_bits, 0, q->shift_base, out);
    htpw_fields_read(q->biases, q->channels, q->bias_bits, UINT32_C(1) << 31, 0, out + q->count);
}

HTPW_COLD int htpw_bits_tail_is_zero(const uint8_t *stream, uint32_t count, uint32_t bits) {
    const uint32_t used = (count * bits) & 7u;
    return used == 0 || (stream[(count * bits) / 8u] >> used) == 0;
}
