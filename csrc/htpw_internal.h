/* htpw_internal.h - what the files of the library share and users never see.
 *
 * One decoder (htpw_decode.c) turns operator records into `struct htpw_op`. htpw_model_open walks it to validate, and
 * htpw_run walks the very same code to execute, so the two cannot disagree about a shape, an offset or a length.
 */
#ifndef HTPW_INTERNAL_H
#define HTPW_INTERNAL_H

#include "htpw.h"
#include "htpw_config.h"
#include "backends/htpw_backend.h"
#include "kernels/htpw_kernels.h"

/* Operators: name, id in the image, bytes of a record (docs/SPEC.md 4.2). Up to FC they have weights, from ADD on none.
 * How to add one: docs/adding-an-operator.md. */
#define HTPW_OPERATORS(X)                                                                                              \
    X(CONV, 1, 26)                                                                                                     \
    X(DEPTHWISE, 2, 24)                                                                                                \
    X(CONV1X1, 3, 12)                                                                                                  \
    X(FC, 4, 12)                                                                                                       \
    X(ADD, 5, 22)                                                                                                      \
    X(AVGPOOL, 6, 18)                                                                                                  \
    X(MAXPOOL, 7, 18)                                                                                                  \
    X(TABLE, 8, 5)                                                                                                     \
    X(MUL, 9, 11)                                                                                                      \
    X(ATTEND, 10, 17)

/* Stored kernels: name, id in the image, bits of a weight (docs/SPEC.md 5). */
#define HTPW_STORED(X)                                                                                                 \
    X(STORED8, 0, 8)                                                                                                   \
    X(STORED4, 1, 4)                                                                                                   \
    X(STORED2, 2, 2)

/* Heads: name, id in the image, the function in htpw_heads.c that reads an entry of HEAD (docs/SPEC.md 4.6). How to add one:
 * docs/adding-a-head.md. */
#define HTPW_HEADS(X)                                                                                                  \
    X(DENSE, 3, htpw_read_dense)                                                                                       \
    X(FACTORISED, 4, htpw_read_factorised)                                                                             \
    X(TILED, 5, htpw_read_tiled)                                                                                       \
    X(SEEDED, 6, htpw_read_seeded)                                                                                     \
    X(CODEBOOK, 7, htpw_read_codebook)

/* What else a build may leave out (htpw_config.h): name, number, and whether an image needs it (docs/SPEC.md 5 has the terms):
 *   PACKS     never; it is needed to apply code packs
 *   NARROW    for kernels that run at 4 bits
 *   ODD       for shapes that vector kernels leave to the portable ones (htpw_op_needs)
 *   WINDOWS   for kernels of conv and depthwise that are made at boot
 *   LARGE     for matrices of generators and heads that are too large for a copy in scratch (htpw_matrix_is_large)
 *   PORTABLE  never; where the build has another backend, the portable one may go
 *   FUSED     never; a backend's own synthesis is only faster
 *   UNROLL    never; without it loops are short, and one row of a matrix product, such as that of fc, is made as a pair of rows
 *   HOOK      never; htpw_run_partial and the hook of htpw_run
 *   PLANES    for tensors or windows of more than one row: without it networks are 1-D, and kernels take one batch
 *   LAZY      never; the schedule HTPW_LAZY */
#define HTPW_EXTRAS(X)                                                                                                 \
    X(PACKS, 1)                                                                                                        \
    X(NARROW, 2)                                                                                                       \
    X(ODD, 3)                                                                                                          \
    X(WINDOWS, 4)                                                                                                      \
    X(LARGE, 5)                                                                                                        \
    X(PORTABLE, 6)                                                                                                     \
    X(FUSED, 7)                                                                                                        \
    X(UNROLL, 8)                                                                                                       \
    X(HOOK, 9)                                                                                                         \
    X(PLANES, 10)                                                                                                      \
    X(LAZY, 11)

/* The error of a part that was left out: operators by their number, then sources, then the others. */
#define HTPW_LEFT_OUT_OPERATOR(id) (HTPW_LEFT_OUT_FIRST - (id))
#define HTPW_LEFT_OUT_SOURCE(id) (HTPW_LEFT_OUT_FIRST - 20 - (id))
#define HTPW_LEFT_OUT_EXTRA(id) (HTPW_LEFT_OUT_FIRST - 40 - (id))

enum htpw_extra {
#define HTPW_EXTRA_ENUM(name, id) HTPW_EXTRA_##name = (id),
    HTPW_EXTRAS(HTPW_EXTRA_ENUM)
#undef HTPW_EXTRA_ENUM
};

enum htpw_operator {
#define HTPW_OPERATOR_ENUM(name, id, bytes) HTPW_OP_##name = (id),
    HTPW_OPERATORS(HTPW_OPERATOR_ENUM)
#undef HTPW_OPERATOR_ENUM
};

/* 1 if `op` is of that kind and the build has it, which a decoded operator's always is: where it is 0, code falls away. */
#define htpw_op_is(op, name) (HTPW_WITH(name) && (op)->kind == HTPW_OP_##name)

enum htpw_source {
#define HTPW_SOURCE_ENUM(name, id, more) HTPW_SOURCE_##name = (id),
    HTPW_STORED(HTPW_SOURCE_ENUM) HTPW_HEADS(HTPW_SOURCE_ENUM)
#undef HTPW_SOURCE_ENUM
};

#define HTPW_TENSOR_MAX (UINT32_C(1) << 22) /* elements of one tensor */
#define HTPW_CACHE_MAX (UINT32_C(1) << 30)  /* bytes of all cached kernels; one takes at most 2^27 */
#define HTPW_ACC_LIMIT (UINT32_C(1) << 30)  /* docs/SPEC.md 7 */
#define HTPW_TABLE_BYTES 256                /* one result for each int8 */

struct htpw_tensor {
    uint16_t h, w, c;
    int8_t zero_point;
    uint8_t written; /* 0: the slot holds nothing yet */
};

/* Limits of docs/SPEC.md 4.5, 4.6. */
enum {
    HTPW_GENERATORS_MAX = 8,
    HTPW_HEADS_MAX = 64,
    HTPW_WIDTH_MAX = 1024, /* of codes and of what runs between the layers */
    HTPW_ENTRIES_MAX = 256,
    HTPW_OWN = 255 /* a matrix or table that the entry holds itself */
};

/* A layer of a generator or a part of a head: where its values lie in the image. */
struct htpw_matrix {
    const uint8_t *weights, *biases; /* packed, rows x cols and rows */
    uint32_t seed;                   /* not 0: the weights are drawn from it */
    uint16_t rows, cols, multiplier; /* the multiplier's upper 16 bits of 32 */
    uint8_t weight_bits, bias_bits;
    int8_t shift;
};

struct htpw_generator {
    uint16_t dz, width; /* width: of what it makes */
    uint8_t layers;
    struct htpw_matrix layer[HTPW_GENERATOR_LAYERS_MAX];
};

/* What makes kernels out of codes. Read by one function per kind; synthesis knows no kinds. */
struct htpw_head {
    uint8_t kind, generator;
    uint8_t shared[2];           /* stages held by an earlier head, or HTPW_OWN */
    uint8_t stages;              /* matrices behind the generator; 0: the table holds weights */
    struct htpw_matrix stage[2]; /* in the order in which they run */
    uint32_t tile;               /* weights made of one code */
    uint8_t is_whole;            /* one code makes a kernel, of exactly `tile` weights */
    uint8_t entry_bits;          /* of a value in `table` */
    uint16_t entries;            /* operators hold ids of so many entries; 0: they hold codes */
    const uint8_t *table;        /* codes (entries, dz), or with 0 stages weights (entries, tile) */
};

/* Requantisation metadata of a linear operator, still packed in QUAN. */
struct htpw_quant_view {
    const uint8_t *multipliers, *shifts, *biases;
    uint8_t form;      /* of the multipliers: docs/SPEC.md 4.3 */
    uint32_t count;    /* multipliers and shifts: 1 if per-tensor, else channels */
    uint32_t channels; /* biases */
    int8_t shift_base;
    uint8_t shift_bits, bias_bits;
};

struct htpw_op { /* small and much used members first: code that reads them is shorter */
    uint8_t kind, slot_in, slot_in2, slot_out;
    int8_t act_min, act_max;
    /* conv, depthwise, conv1x1, fc: */
    uint8_t source, head;            /* enum htpw_source; index in HEAD */
    uint8_t is_cached, is_narrow;    /* docs/SPEC.md 5 */
    uint8_t code_bits;               /* of a code, or of an id */
    uint8_t weight_bits;             /* stored: 8, 4 or 2 */
    struct htpw_tensor in, out;
    uint32_t index;                  /* in the image */
    uint32_t weight_count;           /* elements of the kernel */
    uint32_t products;               /* products in one sum */
    const uint8_t *weights;          /* stored: in WGHT; else NULL */
    const uint8_t *codes;            /* heads, in a walk for synthesis: in CODE or in the code pack */
    uint32_t code_count;             /* values in `codes` */
    uint32_t layer, cache_offset;    /* cached: number among cached kernels, place in the cache */
    struct htpw_quant_view quant;
    struct htpw_window window;       /* conv, depthwise, pools */
    struct htpw_elementwise scalars; /* add, mul; of attend a_offset and what is called out_ or act_ */
    const uint8_t *table;            /* table: HTPW_TABLE_BYTES in WGHT */
    int32_t softmax_multiplier;      /* attend */
    uint8_t softmax_shift, softmax_range;
    uint8_t is_broadcast;            /* mul: the second input has one value for each channel */
};

/* Why an image is walked: running must not read heads and codes, which may be gone by then. */
enum htpw_walk { HTPW_WALK_RUN, HTPW_WALK_SYNTHESIS };

/* Where a walk over the operators stands. */
struct htpw_cursor {
    const struct htpw_backend_rule *rule;
    enum htpw_walk walk;
    uint32_t ops, quant, weights, codes, pack; /* bytes consumed of each section */
    uint32_t index;                            /* operators decoded */
    uint32_t layer, cache;                     /* cached operators and cache bytes so far */
    struct htpw_tensor slot[HTPW_SLOTS];
};

/* 1 if no layout of a backend keeps a copy of the matrix within HTPW_SYNTH_PACKED for sure. */
#define HTPW_SYNTH_PACKED 4096u /* bytes of a matrix that is worth a copy in scratch */
static inline int htpw_matrix_is_large(const struct htpw_matrix *m) {
    const uint32_t rows = (m->rows + 15u) & ~15u, cols = (m->cols + 15u) & ~15u;
    return 2u * rows * cols + 4u * rows > HTPW_SYNTH_PACKED;
}

static inline uint16_t htpw_load_u16(const uint8_t *p) { return (uint16_t)(p[0] | (p[1] << 8)); }

static inline uint32_t htpw_load_u32(const uint8_t *p) {
    return (uint32_t)p[0] | ((uint32_t)p[1] << 8) | ((uint32_t)p[2] << 16) | ((uint32_t)p[3] << 24);
}

static inline int8_t htpw_load_i8(const uint8_t *p) { return (int8_t)(*p < 128 ? *p : *p - 256); }

/* Sets `bytes` bytes to 0. */
static inline void htpw_zero(void *data, size_t bytes) {
#ifdef __GNUC__
    __builtin_memset(data, 0, bytes);
#else
    for (size_t i = 0; i < bytes; i++) {
        ((uint8_t *)data)[i] = 0;
    }
#endif
}

static inline uint32_t htpw_round16(uint32_t n) { return (n + 15u) & ~UINT32_C(15); }

/* Bytes of `count` fields of `bits` each; count * bits < 2^32. */
static inline uint32_t htpw_bits_bytes(uint32_t count, uint32_t bits) { return (count * bits + 7u) / 8u; }

/* Takes `bytes` from a section, or returns NULL if it has fewer left. */
static inline const uint8_t *htpw_take(struct htpw_span section, uint32_t *used, uint32_t bytes) {
    if (bytes > section.length - *used) {
        return NULL;
    }
    const uint8_t *p = section.data + *used;
    *used += bytes;
    return p;
}

static inline uint32_t htpw_tensor_size(const struct htpw_tensor *t) {
    return (uint32_t)t->h * (uint32_t)t->w * (uint32_t)t->c;
}

/* 1 if a decoded operator needs one of HTPW_EXTRAS. */
static HTPW_FOLDED int htpw_op_needs(const struct htpw_op *op, enum htpw_extra extra) {
    const int is_matrix = op->kind == HTPW_OP_CONV1X1 || op->kind == HTPW_OP_FC;
    switch (extra) {
    case HTPW_EXTRA_NARROW:
        return op->is_narrow;
    case HTPW_EXTRA_PLANES:
        return op->in.h != 1 || op->out.h != 1 || op->window.k_h > 1 || op->window.pad_top != 0;
    case HTPW_EXTRA_WINDOWS:
        return op->is_cached && !is_matrix;
    case HTPW_EXTRA_ODD: /* what any of the backends that have kernels of their own for all operators leaves to the portable ones */
        if (op->kind == HTPW_OP_DEPTHWISE) {
            return op->out.c != op->in.c || op->out.c < 4 || op->products > 32;
        }
        if (op->kind == HTPW_OP_ADD) {
            const struct htpw_elementwise *e = &op->scalars;
            return htpw_tensor_size(&op->out) % 4u != 0 || e->left_shift > 21 || e->out_shift > -1 ||
                   e->out_shift < -22;
        }
        if (op->weight_count != 0) {
            return (op->kind == HTPW_OP_CONV && op->window.groups != 1) || op->products < 4;
        }
        return (op->kind == HTPW_OP_AVGPOOL || op->kind == HTPW_OP_MAXPOOL) && op->in.c < 4;
    default:
        return 0;
    }
}

/* Starts a walk: puts the input tensor into slot 0. `rule` says how cached kernels lie in the cache. Errors: DATA, SHAPE. */
int htpw_cursor_start(const struct htpw_model *model, const struct htpw_backend_rule *rule, enum htpw_walk walk,
                      struct htpw_cursor *cursor);

/* Decodes the next operator and checks everything that does not need a look at its metadata or weights.
 * Returns 1 and fills `op`, 0 after the last operator, or an error. */
int htpw_cursor_next(const struct htpw_model *model, struct htpw_cursor *cursor, struct htpw_op *op);

/* Bytes 5.. of the record of an operator without weights, a table with its part of WGHT. */
int htpw_decode_plain(const struct htpw_model *model, struct htpw_cursor *cursor, const uint8_t *record,
                      struct htpw_op *op);

/* Takes `bytes` of WGHT that begin at a multiple of `align`, or returns NULL: too few are left, or one of those skipped is
 * not 0. */
const uint8_t *htpw_take_weights(const struct htpw_model *model, struct htpw_cursor *cursor, uint32_t align,
                                 uint32_t bytes);

/* Walks every operator of a model with all checks: its sizes into `model`, if all is well. Errors: any of an image's. */
int htpw_operators_check(struct htpw_model *model);

/* Checks the values of an operator's metadata and the bound of SPEC section 7. Errors: RANGE, OVERFLOW, DATA. */
int htpw_quant_check(const struct htpw_op *op);

/* Unpacks an operator's metadata into `out`: multipliers[count], shifts[count], biases[channels]. */
void htpw_quant_expand(const struct htpw_quant_view *q, int32_t *out);

enum { HTPW_PART_CODE, HTPW_PART_QUAN }; /* of a code pack's entry: docs/SPEC.md 10 */

/* The entry of the applied code pack for a part of the operator that is being decoded takes the place of
 * *data, if there is one. `length` is that of the part in the image; the pack must have the same: PACK. */
int htpw_pack_part(const struct htpw_model *model, struct htpw_cursor *cursor, uint32_t part, uint32_t length,
                   const uint8_t **data);

/* Steps over the pack's entries of an operator that has been decoded. Errors: PACK, if one is not a part of it. */
int htpw_pack_step(const struct htpw_model *model, struct htpw_cursor *cursor, const struct htpw_op *op);

/* Checks GENR and HEAD wholly, and counts the heads. Errors: SOURCE, SHAPE, RANGE, OVERFLOW, DATA. */
int htpw_heads_check(struct htpw_model *model);

/* Reads generator or head number `index`; of a checked model they cannot fail but for an index out of range: SOURCE. */
int htpw_generator_load(const struct htpw_model *model, uint32_t index, struct htpw_generator *generator);
int htpw_head_load(const struct htpw_model *model, uint32_t index, struct htpw_head *head);

/* Bytes of 4-byte aligned scratch that synthesis needs with a backend; the same function lays it out. */
uint32_t htpw_synth_scratch(const struct htpw_model *model, int backend);

/* A matrix of a head that is too large for a copy in scratch: some rows at a time. */
struct htpw_part {
    struct htpw_matrix matrix;
    int8_t *rows; /* scratch for them; NULL if they lie in the image as they run */
    uint32_t step; /* rows at a time */
};

/* A head made ready in scratch, for one kernel or for all that follow one another with the same head. */
struct htpw_synth {
    uint32_t made_for; /* HTPW_SYNTH_NONE, or head * 2 + is_narrow of what is ready */
    struct htpw_head head;
    struct htpw_synth_job job;
    struct htpw_part part[HTPW_SYNTH_LAYERS_MAX];
    int is_fused; /* the backend's synth may be asked */
    uint32_t tiles; /* made at one time, if they pass through scratch */
    uint32_t pitch; /* of tiles in scratch */
    uint32_t group; /* weights that the backend's synth stores together */
    int8_t *buffer[2]; /* codes or embeddings of all of them, used in turn */
    int8_t *weights; /* on their way into the cache's layout */
    void *scratch; /* of the backend's kernels */
};

#define HTPW_SYNTH_NONE UINT32_MAX

/* Makes the kernel of a cached operator, decoded by a walk for synthesis, into htpw_kernel_bytes at `kernel`. `s` begins with
 * made_for = HTPW_SYNTH_NONE, and may be handed on from kernel to kernel while nothing else writes to scratch. */
void htpw_synth_kernel(const struct htpw_model *model, const struct htpw_backend *backend, const struct htpw_op *op,
                       struct htpw_synth *s, uint8_t *scratch, uint8_t *kernel);

/* How a cached kernel lies in memory: its bytes, its weights back in row-major order. */
uint32_t htpw_kernel_bytes(const struct htpw_backend_rule *rule, const struct htpw_op *op);
void htpw_kernel_get(const struct htpw_backend_rule *rule, const struct htpw_op *op, const uint8_t *kernel, int8_t *w);

/* Scratch bytes that an operator needs when it runs: its unpacked metadata, then what the backend wants; the metadata
 * part is htpw_op_quant_bytes. An attend needs a byte for the weight of each position, others without weights nothing. */
uint32_t htpw_op_scratch(const struct htpw_backend_rule *rule, const struct htpw_op *op);
static inline uint32_t htpw_op_quant_bytes(const struct htpw_op *op) {
    return htpw_round16(4u * (2u * op->quant.count + op->quant.channels));
}

/* htpw_plan_memory; a walk for running reads neither generators, heads nor codes, and leaves synthesis out. */
int htpw_plan(const struct htpw_model *model, int backend, enum htpw_walk walk, struct htpw_plan *plan);

/* Checks what every kind of binding needs, plans, and fills the context but for its kernels. */
int htpw_bind_common(struct htpw_context *ctx, const struct htpw_model *model, int backend, void *arena,
                     enum htpw_walk walk, struct htpw_plan *plan);

#ifdef HTPW_CONFIG_BATCH
/* As htpw_run for `windows` windows and logits, one after the other, of which each operator does all at once: it is decoded and
 * made ready once. `arena` has the planned arena_bytes for each window. Errors: those of htpw_run. */
int htpw_run_batch(struct htpw_context *ctx, void *arena, uint32_t windows, const int8_t *input, int8_t *logits);
#endif

/* Walks to cached operator `layer`. Errors: ARGUMENT if there is none. */
int htpw_cached_op(const struct htpw_model *model, const struct htpw_backend_rule *rule, enum htpw_walk walk,
                   uint32_t layer, struct htpw_op *op);

/* 1 if the unused high bits of the last byte of a packed array are 0. */
int htpw_bits_tail_is_zero(const uint8_t *stream, uint32_t count, uint32_t bits);

#endif
