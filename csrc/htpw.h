/* htpw.h - HyperTinyPW: neural networks whose weights are generated at boot. The whole public API.
 *
 * Life cycle (all memory is the caller's; no heap, no float, no recursion, no globals that change):
 *
 *     static struct htpw_model model;                       // 1. open: validate everything, copy nothing
 *     if (htpw_model_open(&model, image, image_bytes) != 0) ...
 *     struct htpw_plan plan;                                // 2. plan: exact memory needs
 *     htpw_plan_memory(&model, HTPW_BACKEND_BEST, &plan);
 *     static struct htpw_context ctx;                       // 3. bind memory; with HTPW_BOOT synthesise every kernel
 *     htpw_bind(&ctx, &model, HTPW_BACKEND_BEST, arena, plan.arena_bytes, cache, plan.cache_bytes, HTPW_BOOT);
 *     htpw_run(&ctx, window, plan.input_bytes, logits, plan.output_bytes);   // 4. run, as often as you like
 *
 * The image is read in place, from flash if you like, and must stay there. Format and numerics: docs/SPEC.md.
 * Functions return 0 or a negative error code and must be checked; on error no output has been written.
 * A model may be shared by several contexts; one context may be used by one thread at a time.
 */
#ifndef HTPW_H
#define HTPW_H

#ifndef HTPW_CDEF /* the Python binding parses this header with its own integer types */
#include <stddef.h>
#include <stdint.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define HTPW_VERSION_MAJOR 0 /* library; the image format has its own number */
#define HTPW_VERSION_MINOR 1
#define HTPW_VERSION_PATCH 0
#define HTPW_FORMAT_VERSION 1 /* docs/SPEC.md section 4 */
#define HTPW_ROUNDING_CMSIS_NN 1
#define HTPW_SLOTS 8        /* tensors alive at one time, input included */
#define HTPW_HEADS_MAX 8
#define HTPW_GENERATOR_LAYERS_MAX 3
#define HTPW_GENERATED_MAX 64 /* generated operators in one image */

/* Every error, once: name, code, text. The enum, htpw_error_text and the Python exceptions come from this list. */
#define HTPW_ERRORS(X)                                                                                                 \
    X(TRUNCATED, -1, "image is shorter than a header or than the length its header states")                           \
    X(MAGIC, -2, "not an HTPW image (bad magic)")                                                                      \
    X(VERSION, -3, "image format version or rounding rule is not supported by this library")                          \
    X(HEADER_CRC, -4, "header or section table is corrupt (CRC-32 differs)")                                           \
    X(SECTION, -5, "section table is malformed (unknown, repeated or out-of-order tag, offset, length or padding)")    \
    X(SECTION_CRC, -6, "a section is corrupt (CRC-32 differs)")                                                        \
    X(OPERATOR, -7, "unknown operator or malformed operator record")                                                   \
    X(SOURCE, -8, "unknown weight source, or generator or head missing or malformed")                                  \
    X(SHAPE, -9, "a tensor, kernel or window has an impossible shape")                                                 \
    X(RANGE, -10, "a multiplier, shift, zero point, clamp or bit width is out of range")                               \
    X(OVERFLOW, -11, "an accumulator could leave 32 bits")                                                             \
    X(SLOT, -12, "an operator reads an empty slot or writes one that it reads")                                        \
    X(DATA, -13, "a section has too few bytes for the operators, or bytes left over")                                  \
    X(ALIGNMENT, -14, "image, arena or cache is not aligned to 4 bytes")                                               \
    X(ARENA, -15, "arena is smaller than htpw_plan_memory asked for")                                                  \
    X(CACHE, -16, "cache is smaller than htpw_plan_memory asked for")                                                  \
    X(BACKEND, -17, "no such backend, or this build or CPU does not have it")                                          \
    X(ARGUMENT, -18, "an argument is null or has the wrong size")

enum htpw_error {
#define HTPW_ERROR_ENUM(name, code, text) HTPW_ERR_##name = (code),
    HTPW_ERRORS(HTPW_ERROR_ENUM)
#undef HTPW_ERROR_ENUM
    HTPW_OK = 0
};

/* Every backend, once: name, id, text, then its memory rule (csrc/backends/htpw_backend.h): layout {out_block, in_block, bytes,
 * sums}, row_block, depthwise_bytes, synth_bytes. */
#define HTPW_BACKENDS(X)                                                                                               \
    X(PORTABLE, 1, "portable", {1, 1, 1, 0}, 0, 0, 0)                                                                  \
    X(ARMV7EM_DSP, 2, "armv7em_dsp", {4, 4, 1, 0}, 2, 0, 1472)                                                         \
    X(ARMV7EM_DSP_WIDE, 3, "armv7em_dsp_wide", {4, 2, 2, 0}, 2, 0, 1472)                                               \
    X(ARMV81M_MVE, 4, "armv81m_mve", {4, 16, 1, 1}, 0, 0, 1600)                                                        \
    X(X86_AVX2, 5, "x86_avx2", {8, 2, 2, 0}, 20, 0, 0)                                                                 \
    X(X86_AVX512VNNI, 6, "x86_avx512vnni", {16, 4, 1, 1}, 38, 0, 0)                                                    \
    X(CMSIS_NN, 7, "cmsis_nn", {1, 1, 1, 0}, 2, 2, 0)                                                                  \
    X(THUMB, 8, "thumb", {1, 1, 1, 0}, 0, 0, 0)

enum htpw_backend_id {
    HTPW_BACKEND_BEST = 0, /* the fastest that this build and this CPU have */
#define HTPW_BACKEND_ENUM(name, id, text, ...) HTPW_BACKEND_##name = (id),
    HTPW_BACKENDS(HTPW_BACKEND_ENUM)
#undef HTPW_BACKEND_ENUM
    HTPW_BACKEND_COUNT
};

/* When generated kernels are synthesised. All schedules give the same bytes. */
enum htpw_schedule {
    HTPW_BOOT = 0, /* all in htpw_bind: always-on sensors */
    HTPW_LAZY = 1  /* each at its operator's first use: event-triggered devices */
};

/* A section of the image, in place. */
struct htpw_span {
    const uint8_t *data;
    uint32_t length; /* bytes */
};

/* One fully connected layer of the generator, or a head; fields as stored (docs/SPEC.md 4.5, 4.6). */
struct htpw_generator_layer {
    const uint8_t *weights; /* packed, rows x cols at weight_bits */
    const uint8_t *biases;  /* packed, rows at bias_bits; unused by heads */
    uint16_t rows, cols;
    uint8_t weight_bits, bias_bits;
    int8_t shift;
    uint16_t multiplier; /* 16-bit; the CMSIS-NN multiplier is multiplier << 16 */
};

/* An opened image. Filled in by htpw_model_open; read-only for everyone else. */
struct htpw_model {
    struct htpw_span ops, quant, weights, codes;
    struct htpw_generator_layer generator[HTPW_GENERATOR_LAYERS_MAX];
    struct htpw_generator_layer head[HTPW_HEADS_MAX];
    uint32_t slot_bytes[HTPW_SLOTS]; /* largest tensor ever in each slot, rounded up to 16; slot 0 is the caller's */
    uint32_t input_bytes, output_bytes;
    uint16_t generated_count; /* operators whose kernel is generated */
    uint8_t operator_count, generator_layers, head_count, code_bits, dz;
};

/* Memory needs, exact, in bytes. */
struct htpw_plan {
    uint32_t arena_bytes;  /* activations and scratch, 4-byte aligned */
    uint32_t cache_bytes;  /* generated kernels, 4-byte aligned; 0 if nothing is generated */
    uint32_t input_bytes;  /* int8 elements of one input window, (H, W, C) */
    uint32_t output_bytes; /* int8 logits */
};

struct htpw_backend; /* csrc/backends/htpw_backend.h */

/* A model bound to memory and to a backend. */
struct htpw_context {
    const struct htpw_model *model;
    const struct htpw_backend *backend;
    uint8_t *arena, *cache;
    uint8_t ready[HTPW_GENERATED_MAX / 8]; /* bit l: kernel of generated operator l is in the cache */
};

/* One generated kernel. */
struct htpw_kernel_info {
    uint32_t op;    /* index of its operator in the image */
    uint32_t bytes; /* int8 weights, row-major as docs/SPEC.md section 1 */
};

/* Validates the whole image (docs/SPEC.md) and fills `model`. Allocates and copies nothing.
 *   image  4-byte aligned, `length` bytes, kept by the caller as long as the model is used
 *   errors any of TRUNCATED .. ALIGNMENT, ARGUMENT; `model` is then unusable (zeroed) */
int htpw_model_open(struct htpw_model *model, const void *image, size_t length);

/* Exact memory needs of an opened model with a backend (enum htpw_backend_id), which need not be one of this machine: a host
 * plans for its targets. Errors: ARGUMENT, BACKEND. */
int htpw_plan_memory(const struct htpw_model *model, int backend, struct htpw_plan *plan);

/* Binds memory and a backend to a model. With HTPW_BOOT every generated kernel is synthesised before it returns.
 *   arena, cache  4-byte aligned, of at least the planned size; cache may be NULL if the plan says 0
 *   errors        ARGUMENT, BACKEND, ALIGNMENT, ARENA, CACHE */
int htpw_bind(struct htpw_context *ctx, const struct htpw_model *model, int backend, void *arena, size_t arena_bytes,
              void *cache, size_t cache_bytes, int schedule);

/* Synthesises the kernel of generated operator `layer` (0 .. generated_count - 1) into the cache, again if it is there
 * already. Errors: ARGUMENT. */
int htpw_synth_layer(struct htpw_context *ctx, uint32_t layer);

/* Runs one window. After every kernel is in the cache no generator, head or code byte is read.
 *   input   int8 [H][W][C], input_bytes; read in place
 *   logits  int8 [classes], output_bytes
 *   errors  ARGUMENT */
int htpw_run(struct htpw_context *ctx, const int8_t *input, size_t input_bytes, int8_t *logits, size_t output_bytes);

/* Operator and size of generated kernel `layer`. Errors: ARGUMENT. */
int htpw_kernel_info(const struct htpw_model *model, uint32_t layer, struct htpw_kernel_info *info);

/* Copies generated kernel `layer` out of the cache, in row-major order whatever layout the backend keeps it in; it is
 * synthesised first if it is not there yet. `bytes` is htpw_kernel_info's. Errors: ARGUMENT. */
int htpw_kernel_read(struct htpw_context *ctx, uint32_t layer, int8_t *weights, size_t bytes);

/* CRC-32 (ISO-HDLC, as zlib), continuing from `crc`; start with 0. */
uint32_t htpw_crc32(uint32_t crc, const void *data, size_t length);

/* Text of an error code, never NULL. The i-th error's code, or 0 past the end; its name. */
const char *htpw_error_text(int code);
int htpw_error_code(size_t i);
const char *htpw_error_name(int code);

/* Name of a backend ("portable", ...), that of the best for HTPW_BACKEND_BEST, NULL for no backend; whether it can run here. */
const char *htpw_backend_name(int backend);
int htpw_backend_is_available(int backend);

/* "major.minor.patch" of the library; sizes of the caller-owned structs, for bindings. */
const char *htpw_version(void);
size_t htpw_sizeof_model(void);
size_t htpw_sizeof_context(void);

#ifdef __cplusplus
}
#endif
#endif
