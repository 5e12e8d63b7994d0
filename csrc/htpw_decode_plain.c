/* Records of operators without weights: add, mul, attend, the pools, table. Their scalars are in the record. */
#include "htpw_internal.h"

/* What keeps the sums of docs/SPEC.md section 7 below 2^30: 255 * 255 << 14, and 511 * 255 * 255 << 5. */
enum { HTPW_MUL_SHIFT_MAX = 14, HTPW_ATTEND_SHIFT_MAX = 5, HTPW_ATTEND_MAX = 511, HTPW_SOFTMAX_SHIFT_MAX = 30 };

/* Byte 5, the second input slot, into `op`. NULL if it is not one that may be read. */
static const struct htpw_tensor *htpw_second(const uint8_t *record, const struct htpw_cursor *cursor,
                                             struct htpw_op *op) {
    op->slot_in2 = record[5];
    const int is_read = op->slot_in2 < HTPW_SLOTS && op->slot_in2 != op->slot_out;
    return is_read && cursor->slot[op->slot_in2].written ? &cursor->slot[op->slot_in2] : NULL;
}

static int htpw_is_shape(const struct htpw_tensor *t, uint32_t h, uint32_t w, uint32_t c) {
    return t->h == h && t->w == w && t->c == c;
}

static void htpw_same_shape(struct htpw_op *op) {
    op->out.h = op->in.h;
    op->out.w = op->in.w;
    op->out.c = op->in.c;
}

/* The output's requantisation, whose shift is at most `shift_max`, and the offset of the first input. */
static int htpw_decode_output(struct htpw_op *op, uint32_t multiplier, int8_t shift, int32_t shift_max) {
    struct htpw_elementwise *e = &op->scalars;
    if (shift < -31 || shift > shift_max || multiplier > INT32_MAX) {
        return HTPW_ERR_RANGE;
    }
    e->out_multiplier = (int32_t)multiplier;
    e->out_shift = shift;
    e->a_offset = -op->in.zero_point;
    e->out_offset = op->out.zero_point;
    e->act_min = op->act_min;
    e->act_max = op->act_max;
    return HTPW_OK;
}

static int htpw_decode_add(const uint8_t *record, const struct htpw_cursor *cursor, struct htpw_op *op) {
    struct htpw_elementwise *e = &op->scalars;
    const struct htpw_tensor *b = htpw_second(record, cursor, op);
    if (b == NULL) {
        return HTPW_ERR_SLOT;
    }
    if (!htpw_is_shape(b, op->in.h, op->in.w, op->in.c)) {
        return HTPW_ERR_SHAPE;
    }
    htpw_same_shape(op);
    e->left_shift = record[6];
    e->a_shift = htpw_load_i8(record + 7);
    e->b_shift = htpw_load_i8(record + 8);
    const uint32_t m1 = htpw_load_u32(record + 10), m2 = htpw_load_u32(record + 14);
    if (e->left_shift < 16 || e->left_shift > 22 || e->a_shift > 0 || e->a_shift < -31 || e->b_shift > 0 ||
        e->b_shift < -31 || m1 > INT32_MAX || m2 > INT32_MAX) {
        return HTPW_ERR_RANGE;
    }
    e->a_multiplier = (int32_t)m1;
    e->b_multiplier = (int32_t)m2;
    e->b_offset = -b->zero_point;
    return htpw_decode_output(op, htpw_load_u32(record + 18), htpw_load_i8(record + 9), 0);
}

/* Its second input has the shape of the first, or one value for each channel. */
static int htpw_decode_mul(const uint8_t *record, const struct htpw_cursor *cursor, struct htpw_op *op) {
    const struct htpw_tensor *b = htpw_second(record, cursor, op);
    if (b == NULL) {
        return HTPW_ERR_SLOT;
    }
    op->is_broadcast = !htpw_is_shape(b, op->in.h, op->in.w, op->in.c);
    if (op->is_broadcast && !htpw_is_shape(b, 1, 1, op->in.c)) {
        return HTPW_ERR_SHAPE;
    }
    htpw_same_shape(op);
    op->scalars.b_offset = -b->zero_point;
    return htpw_decode_output(op, htpw_load_u32(record + 7), htpw_load_i8(record + 6), HTPW_MUL_SHIFT_MAX);
}

/* Its second input has a score for each position, and its zero point does not matter: softmax looks at differences. */
static int htpw_decode_attend(const uint8_t *record, const struct htpw_cursor *cursor, struct htpw_op *op) {
    const struct htpw_tensor *scores = htpw_second(record, cursor, op);
    if (scores == NULL) {
        return HTPW_ERR_SLOT;
    }
    if (!htpw_is_shape(scores, op->in.h, op->in.w, 1) || (uint32_t)op->in.h * op->in.w > HTPW_ATTEND_MAX) {
        return HTPW_ERR_SHAPE;
    }
    op->out.h = op->out.w = 1;
    op->out.c = op->in.c;
    const uint32_t multiplier = htpw_load_u32(record + 9);
    op->softmax_shift = record[6];
    op->softmax_range = record[7];
    if (op->softmax_shift > HTPW_SOFTMAX_SHIFT_MAX || multiplier > INT32_MAX ||
        (uint64_t)op->softmax_range << op->softmax_shift > INT32_MAX) { /* differences are shifted in int32 */
        return HTPW_ERR_RANGE;
    }
    op->softmax_multiplier = (int32_t)multiplier;
    return htpw_decode_output(op, htpw_load_u32(record + 13), htpw_load_i8(record + 8), HTPW_ATTEND_SHIFT_MAX);
}

/* Bytes 5..17 of a pooling record. Every window must hold at least one cell of the input. */
static HTPW_COLD int htpw_decode_pool(const uint8_t *record, struct htpw_op *op) {
    struct htpw_window *g = &op->window;
    op->out.h = htpw_load_u16(record + 6);
    op->out.w = htpw_load_u16(record + 8);
    op->out.c = op->in.c;
    g->k_h = htpw_load_u16(record + 10);
    g->k_w = htpw_load_u16(record + 12);
    g->stride_h = record[14];
    g->stride_w = record[15];
    g->pad_top = record[16];
    g->pad_left = record[17];
    g->dil_h = g->dil_w = 1;
    if (record[5] != 0) {
        return HTPW_ERR_OPERATOR;
    }
    if (op->out.zero_point != op->in.zero_point) {
        return HTPW_ERR_RANGE;
    }
    if (!g->k_h || !g->k_w || !g->stride_h || !g->stride_w || !op->out.h || !op->out.w || g->pad_top >= g->k_h ||
        g->pad_left >= g->k_w || ((int32_t)op->out.h - 1) * g->stride_h - g->pad_top >= op->in.h ||
        ((int32_t)op->out.w - 1) * g->stride_w - g->pad_left >= op->in.w) {
        return HTPW_ERR_SHAPE;
    }
    return HTPW_OK;
}

int htpw_decode_plain(const struct htpw_model *model, struct htpw_cursor *cursor, const uint8_t *record,
                      struct htpw_op *op) {
    if (htpw_op_is(op, ADD)) {
        return htpw_decode_add(record, cursor, op);
    }
    if (htpw_op_is(op, MUL)) {
        return htpw_decode_mul(record, cursor, op);
    }
    if (htpw_op_is(op, ATTEND)) {
        return htpw_decode_attend(record, cursor, op);
    }
    if (htpw_op_is(op, TABLE)) {
        htpw_same_shape(op);
        op->table = htpw_take_weights(model, cursor, 4, HTPW_TABLE_BYTES);
        return op->table != NULL ? HTPW_OK : HTPW_ERR_DATA;
    }
    return htpw_decode_pool(record, op);
}
