/* htpw_internal.h - what the files of the library share and users never see.
 *
 * One decoder (htpw_decode.c) turns operator records into `struct htpw_op`. htpw_model_open walks it to validate, and
 * htpw_run walks the very same code to execute, so the two cannot disagree about a shape, an offset or a length.
 */
#ifndef HTPW_INTERNAL_H
#define HTPW_INTERNAL_H

#include "htpw.h"
#include "backends/htpw_backend.h"
#include "kernels/htpw_kernels.h"

/* Operators: name, id in the image, bytes of a record (docs/SPEC.md 4.2). */
#define HTPW_OPERATORS(X)                                                                                              \
    X(CONV, 1, 26)                                                                                                     \
    X(DEPTHWISE, 2, 24)                                                                                                \
    X(CONV1X1, 3, 12)                                                                                                  \
    X(FC, 4, 12)                                                                                                       \
    X(ADD, 5, 16)                                                                                                      \
    X(AVGPOOL, 6, 18)                                                                                                  \
    X(MAXPOOL, 7, 18)

/* Weight sources, stored or heads: name, id in the image, whether the kernel is generated (docs/SPEC.md 5). */
#define HTPW_SOURCES(X)                                                                                                \
    X(STORED8, 0, 0)                                                                                                   \
    X(TILED, 5, 1)

enum htpw_operator {
#define HTPW_OPERATOR_ENUM(name, id, bytes) HTPW_OP_##name = (id),
    HTPW_OPERATORS(HTPW_OPERATOR_ENUM)
#undef HTPW_OPERATOR_ENUM
};

enum htpw_source {
#define HTPW_SOURCE_ENUM(name, id, generated) HTPW_SOURCE_##name = (id),
    HTPW_SOURCES(HTPW_SOURCE_ENUM)
#undef HTPW_SOURCE_ENUM
};

#define HTPW_TENSOR_MAX (UINT32_C(1) << 22) /* elements of one tensor */
#define HTPW_CACHE_MAX (UINT32_C(1) << 30)  /* bytes of all cached kernels; one takes at most 2^27 */
#define HTPW_ACC_LIMIT (UINT32_C(1) << 30)  /* docs/SPEC.md 7 */

struct htpw_tensor {
    uint16_t h, w, c;
    int8_t zero_point;
    uint8_t written; /* 0: the slot holds nothing yet */
};

/* Requantisation metadata of a linear operator, still packed in QUAN. */
struct htpw_quant_view {
    const uint8_t *multipliers, *shifts, *biases;
    uint32_t count;    /* multipliers and shifts: 1 if per-tensor, else channels */
    uint32_t channels; /* biases */
    int8_t shift_base;
    uint8_t shift_bits, bias_bits;
};

struct htpw_op {
    uint8_t kind, slot_in, slot_in2, slot_out;
    struct htpw_tensor in, out;
    int8_t act_min, act_max;
    struct htpw_window window;        /* conv, depthwise, pools */
    struct htpw_elementwise add;      /* add */
    /* conv, depthwise, conv1x1, fc: */
    uint8_t source;                   /* enum htpw_source */
    uint8_t head;                     /* generated only */
    struct htpw_quant_view quant;
    uint32_t weight_count;            /* elements of the kernel */
    uint32_t products;                /* products in one sum */
    const int8_t *weights;            /* stored8: in WGHT; NULL if generated */
    const uint8_t *codes;             /* generated: packed, in CODE */
    uint32_t layer, cache_offset;     /* generated: number among generated operators, place in the cache */
};

/* Where a walk over the operators stands. */
struct htpw_cursor {
    const struct htpw_backend_rule *rule;
    uint32_t ops, quant, weights, codes; /* bytes consumed of each section */
    uint32_t index;                      /* operators decoded */
    uint32_t layer, cache;               /* generated operators and cache bytes so far */
    struct htpw_tensor slot[HTPW_SLOTS];
};

static inline uint16_t htpw_load_u16(const uint8_t *p) { return (uint16_t)(p[0] | (p[1] << 8)); }

static inline uint32_t htpw_load_u32(const uint8_t *p) {
    return (uint32_t)p[0] | ((uint32_t)p[1] << 8) | ((uint32_t)p[2] << 16) | ((uint32_t)p[3] << 24);
}

static inline int8_t htpw_load_i8(const uint8_t *p) { return (int8_t)(*p < 128 ? *p : *p - 256); }

/* Sets `bytes` bytes to 0 (compilers make memset of it). */
static inline void htpw_zero(void *data, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) {
        ((uint8_t *)data)[i] = 0;
    }
}

static inline uint32_t htpw_round16(uint32_t n) { return (n + 15u) & ~UINT32_C(15); }

/* Bytes of `count` fields of `bits` each; count * bits < 2^32. */
static inline uint32_t htpw_bits_bytes(uint32_t count, uint32_t bits) { return (count * bits + 7u) / 8u; }

static inline uint32_t htpw_tensor_size(const struct htpw_tensor *t) {
    return (uint32_t)t->h * (uint32_t)t->w * (uint32_t)t->c;
}

/* Starts a walk: puts the input tensor into slot 0. `rule` says how generated kernels lie in the cache. Errors: DATA, SHAPE. */
int htpw_cursor_start(const struct htpw_model *model, const struct htpw_backend_rule *rule,
                      struct htpw_cursor *cursor);

/* Decodes the next operator and checks everything that does not need a look at its metadata or weights.
 * Returns 1 and fills `op`, 0 after the last operator, or an error. */
int htpw_cursor_next(const struct htpw_model *model, struct htpw_cursor *cursor, struct htpw_op *op);

/* Checks the values of an operator's metadata and the bound of SPEC section 7. Errors: RANGE, OVERFLOW, DATA. */
int htpw_quant_check(const struct htpw_op *op);

/* Unpacks an operator's metadata into `out`: multipliers[count], shifts[count], biases[channels]. */
void htpw_quant_expand(const struct htpw_quant_view *q, int32_t *out);

/* Parses GENR and HEAD into the model. Errors: SOURCE, RANGE, OVERFLOW, DATA. */
int htpw_generator_open(struct htpw_model *model, struct htpw_span generator, struct htpw_span heads);

/* Bytes of 4-byte aligned scratch that synthesis needs with a backend; the same function lays it out. */
uint32_t htpw_synth_scratch(const struct htpw_model *model, int backend);

/* Synthesises the kernel of a generated operator into its place in the cache, in the layout htpw_op_layout gives. */
void htpw_synth_kernel(const struct htpw_model *model, const struct htpw_backend *backend, const struct htpw_op *op,
                       uint8_t *scratch, uint8_t *cache);

/* How a generated kernel lies in the cache: the backend's layout for matrices, row-major for other kernels. */
const struct htpw_layout *htpw_op_layout(const struct htpw_backend_rule *rule, const struct htpw_op *op);

/* Scratch bytes that an operator needs when it runs: its unpacked metadata, then what the backend wants. The metadata
 * part is htpw_op_quant_bytes. */
uint32_t htpw_op_scratch(const struct htpw_backend_rule *rule, const struct htpw_op *op);
static inline uint32_t htpw_op_quant_bytes(const struct htpw_op *op) {
    return htpw_round16(4u * (2u * op->quant.count + op->quant.channels));
}

/* 1 if the unused high bits of the last byte of a packed array are 0. */
int htpw_bits_tail_is_zero(const uint8_t *stream, uint32_t count, uint32_t bits);

#endif
