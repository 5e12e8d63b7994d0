/* htpw.h - HyperTinyPW: neural networks whose weights are generated at boot. The whole public API.
 *
 * Life cycle (all memory is the caller's; no heap, no float, no recursion, no globals that change,
 * save one answer of Linux that the x86_amx backend keeps):
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
#define HTPW_FORMAT_VERSION 2 /* docs/SPEC.md section 4 */
#define HTPW_ROUNDING_CMSIS_NN 1
#define HTPW_SLOTS 8        /* tensors alive at one time, input included */
#define HTPW_GENERATOR_LAYERS_MAX 3
#define HTPW_CACHED_MAX 64  /* operators of one image whose kernel is cached */
#define HTPW_SHA256_BYTES 32

/* Every error, once: name, code, text. The enum, htpw_error_text and the Python exceptions come from this list. */
#define HTPW_ERRORS(X)                                                                                                 \
    X(TRUNCATED, -1, "image is shorter than a header or than the length its header states")                            \
    X(MAGIC, -2, "not an HTPW image (bad magic)")                                                                      \
    X(VERSION, -3, "image format version or rounding rule is not supported by this library")                           \
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
    X(ARGUMENT, -18, "an argument is null or has the wrong size")                                                      \
    X(STORE, -19, "the flash store does not hold the kernels of this image: fill it with HTPW_STREAMED")               \
    X(FLASH, -20, "the flash is too small or its geometry is impossible, or erasing or programming it failed")         \
    X(PACK, -21, "a code pack is malformed, corrupt, or does not fit its base image")                                  \
    X(BASE, -22, "a code pack belongs to another image (SHA-256 differs)")                                             \
    X(NUMBER, -23, "a code pack has a lower number than the one applied, or not a higher one than the one stored")     \
    X(SIGNATURE, -24, "the signature was rejected")                                                                    \
    X(SELFTEST, -25, "the self-test gave other bytes than it must")                                                    \
    X(LEFT_OUT, -26, "this build of the library leaves out what the image needs")                                      \
    X(RESUME, -27, "another input or other logits than those that htpw_run_partial began with, or a run between")

enum htpw_error {
#define HTPW_ERROR_ENUM(name, code, text) HTPW_ERR_##name = (code),
    HTPW_ERRORS(HTPW_ERROR_ENUM)
#undef HTPW_ERROR_ENUM
        HTPW_OK = 0
};

/* A build may leave parts of the library out (htpw_config.h). An image that needs one is refused with HTPW_ERR_LEFT_OUT, as a code of
 * its own: HTPW_LEFT_OUT_FIRST less the number of the part, whose name htpw_error_text tells. */
enum { HTPW_LEFT_OUT_FIRST = -100 };

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
    X(THUMB, 8, "thumb", {1, 1, 1, 0}, 0, 0, 0)                                                                        \
    X(X86_AMX, 9, "x86_amx", {16, 4, 1, 1}, 40, 0, 0)

enum htpw_backend_id {
    HTPW_BACKEND_BEST = 0, /* the fastest that this build and this CPU have */
#define HTPW_BACKEND_ENUM(name, id, text, ...) HTPW_BACKEND_##name = (id),
    HTPW_BACKENDS(HTPW_BACKEND_ENUM)
#undef HTPW_BACKEND_ENUM
        HTPW_BACKEND_COUNT
};

/* When cached kernels are made, and where they live. All schedules give the same bytes. */
enum htpw_schedule {
    HTPW_BOOT = 0,     /* in SRAM, all in htpw_bind: always-on sensors */
    HTPW_LAZY = 1,     /* in SRAM, each at its operator's first use: event-triggered devices */
    HTPW_STREAMED = 2, /* in flash: htpw_bind_flash makes what is not there yet, and writes it page by page */
    HTPW_INSTALLED = 3 /* in flash, from an earlier HTPW_STREAMED: htpw_bind_flash verifies them and makes nothing */
};

/* A section of the image, in place. */
struct htpw_span {
    const uint8_t *data;
    uint32_t length; /* bytes */
};

/* An opened image. Filled in by htpw_model_open; read-only for everyone else. */
struct htpw_model {
    const uint8_t *image;
    uint32_t image_bytes;
    struct htpw_span ops, quant, weights, generators, heads, codes;
    struct htpw_span pack;           /* entries of the applied code pack; length 0 if none */
    uint32_t pack_number, pack_crc;  /* 0 if none */
    uint32_t slot_bytes[HTPW_SLOTS]; /* largest tensor ever in each slot, rounded up to 16; slot 0 is the caller's */
    uint32_t input_bytes, output_bytes;
    uint16_t cached_count; /* operators whose kernel is cached */
    uint8_t operator_count, head_count;
};

/* Memory needs, exact, in bytes. */
struct htpw_plan {
    uint32_t arena_bytes;  /* activations and scratch, 4-byte aligned */
    uint32_t cache_bytes;  /* cached kernels, 4-byte aligned; 0 if every kernel is stored as it runs */
    uint32_t input_bytes;  /* int8 elements of one input window, (H, W, C) */
    uint32_t output_bytes; /* int8 logits */
    /* arenas for htpw_bind_flash, which needs no cache: with room for one kernel on its way, and without synthesis */
    uint32_t streamed_arena_bytes, installed_arena_bytes;
};

/* A region of writable, memory-mapped flash, and how to write it. Offsets are from `base`. */
struct htpw_flash {
    const uint8_t *base; /* where it is read, 4-byte aligned */
    uint32_t bytes; /* of the region, a multiple of erase_bytes */
    uint32_t page_bytes; /* programmed at once, each once between two erasures: a multiple of 4, at least 4 */
    uint32_t erase_bytes; /* erased at once, to 0xFF: a multiple of page_bytes */
    uint8_t *page; /* page_bytes of SRAM, 4-byte aligned, for a page on its way */
    void *user; /* handed to the two functions; they return 0, or anything else if they failed */
    int (*erase)(void *user, uint32_t offset); /* the erase block at offset */
    int (*program)(void *user, uint32_t offset, const uint8_t *page); /* the page at offset */
};

struct htpw_backend; /* csrc/backends/htpw_backend.h */

/* Called in front of (is_done 0) and behind (is_done 1) operator `op` of every run: a timer, a watchdog to be fed, a slice of sleep.
 * It must not call the library with the same context. */
typedef void (*htpw_hook_fn)(void *user, uint32_t op, int is_done);

/* A model bound to memory and to a backend. */
struct htpw_context {
    const struct htpw_model *model;
    const struct htpw_backend *backend;
    uint8_t *arena;
    uint8_t *cache; /* in SRAM; NULL if the kernels are in flash */
    const uint8_t *kernels; /* where they are read: the cache, or flash */
    uint8_t ready[HTPW_CACHED_MAX / 8]; /* bit l: cached kernel l has been made */
    htpw_hook_fn hook; /* NULL: none */
    void *hook_user;
    /* of a run by parts that is under way: */
    const int8_t *input, *logits; /* what it began with */
    uint32_t done; /* operators; 0: none is under way */
};

/* One cached kernel. */
struct htpw_kernel_info {
    uint32_t op; /* index of its operator in the image */
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

/* Binds memory, a backend and a kernel store in flash (docs/SPEC.md 9). HTPW_STREAMED fills the store if it does not hold the
 * kernels of this image, code pack and backend, and resumes where a power cut left it; what a cut left half-written is never used.
 * HTPW_INSTALLED reads neither generators, heads nor codes: it verifies the store, and returns STORE if it is not right.
 *   arena   of at least the planned streamed_arena_bytes or installed_arena_bytes
 *   flash   of at least htpw_flash_bytes; the structure need not outlive the call, the region must
 *   errors  ARGUMENT, BACKEND, ALIGNMENT, ARENA, FLASH, STORE */
int htpw_bind_flash(struct htpw_context *ctx, const struct htpw_model *model, int backend, void *arena,
                    size_t arena_bytes, const struct htpw_flash *flash, int schedule);

/* Bytes of flash, whole erase blocks, that a store needs with this plan; 0 if the geometry is impossible. */
uint32_t htpw_flash_bytes(const struct htpw_plan *plan, const struct htpw_flash *flash);

/* Makes cached kernel `layer` (0 .. cached_count - 1), again if it is there already. Errors: ARGUMENT, also for a context
 * whose kernels are in flash. */
int htpw_synth_layer(struct htpw_context *ctx, uint32_t layer);

/* Runs one window. After every kernel has been made no generator, head or code byte is read.
 *   input   int8 [H][W][C], input_bytes; read in place
 *   logits  int8 [classes], output_bytes
 *   errors  ARGUMENT; RESUME while a run by parts is under way, which it would spoil */
int htpw_run(struct htpw_context *ctx, const int8_t *input, size_t input_bytes, int8_t *logits, size_t output_bytes);

/* Runs at most `layers` >= 1 operators of a window, and with each further call the next, for callers that cannot wait for a whole one.
 * Arguments as for htpw_run, the same in all calls for one window; input and arena must keep their bytes between them. Each call reads
 * the records of the operators that are done once more. With HTPW_LAZY the first use of a layer takes its synthesis.
 *   returns the number of operators left; at 0 the logits have been written, and the next call begins a new window
 *   errors  ARGUMENT; RESUME if input or logits are not those that the window began with: it can still be gone on with */
int htpw_run_partial(struct htpw_context *ctx, const int8_t *input, size_t input_bytes, int8_t *logits,
                     size_t output_bytes, uint32_t layers);

/* Forgets a run by parts that is under way, if there is one. Errors: ARGUMENT. */
int htpw_run_cancel(struct htpw_context *ctx);

/* Sets what is called around every operator, NULL for nothing; htpw_bind and htpw_bind_flash set nothing. Errors: ARGUMENT. */
int htpw_set_hook(struct htpw_context *ctx, htpw_hook_fn hook, void *user);

/* Operator and size of cached kernel `layer`. Errors: ARGUMENT. */
int htpw_kernel_info(const struct htpw_model *model, uint32_t layer, struct htpw_kernel_info *info);

/* Copies cached kernel `layer` out, in row-major order whatever layout the backend keeps it in; it is made first if it
 * is not there yet. `bytes` is htpw_kernel_info's. Errors: ARGUMENT. */
int htpw_kernel_read(struct htpw_context *ctx, uint32_t layer, int8_t *weights, size_t bytes);

/* Applies a code pack (docs/SPEC.md 10) to an opened model: checked wholly before use; on error the model stays as it was.
 * The pack is read in place and must stay there as long as the model is used. Contexts bound before must be bound again.
 *   errors  PACK, BASE, NUMBER, RANGE, OVERFLOW, DATA, ARGUMENT */
int htpw_codes_apply(struct htpw_model *model, const void *pack, size_t length);

/* Two slots for code packs in one region of flash. Store writes a pack, checked against the model first, to the slot that does not
 * hold the newest valid one; boot applies the newest valid one (none is no error: pack_number stays 0); rollback erases the
 * newest valid one, so that the next boot applies the one before, or none. All survive a power cut at any point.
 *   errors  those of htpw_codes_apply, FLASH; rollback: STORE if there is none */
int htpw_codes_store(const struct htpw_model *model, const struct htpw_flash *flash, const void *pack, size_t length);
int htpw_codes_boot(struct htpw_model *model, const struct htpw_flash *flash);
int htpw_codes_rollback(const struct htpw_model *model, const struct htpw_flash *flash);

/* Asks the caller whether `signature` signs `digest` (SHA-256); 0 is yes. Ed25519 by a library of the caller's, for example. */
typedef int (*htpw_verify_fn)(void *user, const uint8_t *digest, const uint8_t *signature, size_t signature_bytes);

/* Shows the digest of an image or code pack to `verify` before a byte of it is interpreted. Errors: SIGNATURE, ARGUMENT. */
int htpw_verify(const void *data, size_t length, const uint8_t *signature, size_t signature_bytes,
                htpw_verify_fn verify, void *user);

/* SHA-256 (FIPS 180-4) of `length` bytes. */
void htpw_sha256(const void *data, size_t length, uint8_t *digest);

/* Runs an embedded image on this CPU with `backend`: every head kind and operator, kernels and logits compared with what they must be.
 *   memory  4-byte aligned, HTPW_SELFTEST_BYTES, content free before and after
 *   errors  SELFTEST, ARGUMENT, BACKEND, ARENA */
int htpw_selftest(int backend, void *memory, size_t bytes);
#define HTPW_SELFTEST_BYTES 8192

/* CRC-32 (ISO-HDLC, as zlib), continuing from `crc`; start with 0. */
uint32_t htpw_crc32(uint32_t crc, const void *data, size_t length);

/* The parts that a build may leave out, from i = 0 on: the name behind HTPW_WITH_, or NULL past the end, and whether this build has it.
 * Whether an opened image needs it: 1, 0, or ARGUMENT. For tools that write a configuration; firmware never calls them. */
const char *htpw_part_name(size_t i);
int htpw_part_is_there(size_t i);
int htpw_model_needs(const struct htpw_model *model, size_t i);

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
