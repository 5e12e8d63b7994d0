/* The list of backends: their memory rules, which of them this build has, and the one choice among them. */
#include "backends/armv7em_dsp/htpw_dsp.h"
#include "backends/armv81m_mve/htpw_mve.h"
#include "backends/cmsis_nn/htpw_cmsis_nn.h"
#include "backends/htpw_backend.h"
#include "backends/thumb/htpw_thumb.h"
#include "backends/x86_amx/htpw_amx.h"
#include "backends/x86_avx2/htpw_avx2.h"
#include "backends/x86_avx512vnni/htpw_vnni.h"

/* The portable backend may be left out only where there is another on every machine that the build is for. */
#if defined(HTPW_HAS_ARMV81M_MVE) || defined(HTPW_HAS_ARMV7EM_DSP) || defined(HTPW_HAS_THUMB) || defined(HTPW_HAS_CMSIS_NN)
#define HTPW_HAS_PORTABLE HTPW_WITH(PORTABLE)
#else
#define HTPW_HAS_PORTABLE 1
#endif

/* Rules are data for every backend, also for those that this machine cannot run: a host plans for a target. */
static const struct htpw_backend_rule htpw_rules[] = {
#define HTPW_RULE_ROW(name, id, text, ...) [id] = {__VA_ARGS__},
#if HTPW_ANY_BLOCKS
    HTPW_BACKENDS(HTPW_RULE_ROW)
#else
    [HTPW_BACKEND_PORTABLE] = {{1, 1, 1, 0}, 0, 0, 0}
#endif
#undef HTPW_RULE_ROW
};

static void htpw_portable_conv(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                               const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch, int8_t *y) {
    (void)scratch;
    htpw_conv_s8_ref(g, q, in_offset, x, w, bias, y);
}

static void htpw_portable_depthwise(const struct htpw_window *g, const struct htpw_requant *q, int32_t in_offset,
                                    const int8_t *x, const int8_t *w, const int32_t *bias, void *scratch, int8_t *y) {
    (void)scratch;
    htpw_depthwise_s8_ref(g, q, in_offset, x, w, bias, y);
}

static void htpw_portable_conv1x1(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                                  int32_t in_offset, const int8_t *x, const int8_t *w, const int32_t *bias,
                                  void *scratch, int8_t *y) {
    (void)scratch;
    htpw_conv1x1_s8_ref(rows, in_c, out_c, q, in_offset, x, w, bias, y);
}

static void htpw_portable_packed(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q,
                                 int32_t in_offset, const int8_t *x, const void *packed, const int32_t *bias,
                                 void *scratch, int8_t *y) {
    (void)scratch;
    htpw_conv1x1_s8_ref(rows, in_c, out_c, q, in_offset, x, (const int8_t *)packed, bias, y);
}

void htpw_conv1x1_s4_plain(int32_t rows, int32_t in_c, int32_t out_c, const struct htpw_requant *q, int32_t in_offset,
                           const int8_t *x, const uint8_t *w, const int32_t *bias, void *scratch, int8_t *y) {
    (void)scratch;
    htpw_conv1x1_s4_ref(rows, in_c, out_c, q, in_offset, x, w, bias, y);
}

static const struct htpw_backend htpw_portable = {
    HTPW_BACKEND_PORTABLE,
    HTPW_IF(HTPW_WITH(CONV), htpw_portable_conv),
    HTPW_IF(HTPW_WITH(DEPTHWISE), htpw_portable_depthwise),
    HTPW_IF(HTPW_ANY_ROWS, htpw_portable_conv1x1),
    HTPW_IF(HTPW_ANY_PACKED, htpw_portable_packed),
    HTPW_IF(HTPW_WITH(ADD), htpw_add_s8_ref),
    HTPW_IF(HTPW_WITH(AVGPOOL), htpw_avgpool_s8_ref),
    HTPW_IF(HTPW_WITH(MAXPOOL), htpw_maxpool_s8_ref),
    HTPW_IF(HTPW_WITH(NARROW), htpw_conv1x1_s4_plain),
    NULL};

/* x86: a CPU has them or not; the compiler's runtime asks CPUID and XGETBV once, and keeps the answer itself. */
#ifdef HTPW_HAS_X86_AVX2
static const struct htpw_backend *htpw_find_avx2(void) { return __builtin_cpu_supports("avx2") ? &htpw_backend_x86_avx2 : NULL; }
#endif
#ifdef HTPW_HAS_X86_AVX512VNNI
static const struct htpw_backend *htpw_find_vnni(void) {
    const int has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    return has ? &htpw_backend_x86_avx512vnni : NULL;
}
#endif

#ifdef HTPW_HAS_X86_AMX
static const struct htpw_backend *htpw_find_amx(void) {
    return htpw_find_vnni() != NULL && htpw_amx_is_usable() ? &htpw_backend_x86_amx : NULL;
}
#endif

/* The best backend of this build and CPU. */
static int htpw_backend_best(void) {
#if defined(HTPW_HAS_CMSIS_NN)
    return HTPW_BACKEND_CMSIS_NN; /* whoever compiles it in wants it */
#else
#ifdef HTPW_HAS_X86_AMX
    if (htpw_find_amx() != NULL) {
        return HTPW_BACKEND_X86_AMX;
    }
#endif
#ifdef HTPW_HAS_X86_AVX512VNNI
    if (htpw_find_vnni() != NULL) {
        return HTPW_BACKEND_X86_AVX512VNNI;
    }
#endif
#ifdef HTPW_HAS_X86_AVX2
    if (htpw_find_avx2() != NULL) {
        return HTPW_BACKEND_X86_AVX2;
    }
#endif
#if defined(HTPW_HAS_ARMV81M_MVE)
    return HTPW_BACKEND_ARMV81M_MVE;
#elif defined(HTPW_HAS_ARMV7EM_DSP) && defined(HTPW_CONFIG_CACHE_WIDE)
    return HTPW_BACKEND_ARMV7EM_DSP_WIDE;
#elif defined(HTPW_HAS_ARMV7EM_DSP)
    return HTPW_BACKEND_ARMV7EM_DSP;
#elif defined(HTPW_HAS_THUMB)
    return HTPW_BACKEND_THUMB;
#else
    return HTPW_BACKEND_PORTABLE;
#endif
#endif
}

const struct htpw_backend_rule *htpw_backend_rule(int id) {
    id = id == HTPW_BACKEND_BEST ? htpw_backend_best() : id;
    if (!HTPW_ANY_BLOCKS) { /* of a small build no other is asked for */
        return id == HTPW_BACKEND_PORTABLE ? &htpw_rules[HTPW_BACKEND_PORTABLE] : NULL;
    }
    return id >= HTPW_BACKEND_PORTABLE && id < HTPW_BACKEND_COUNT ? &htpw_rules[id] : NULL;
}

const struct htpw_backend *htpw_backend_get(int id) {
    switch (id == HTPW_BACKEND_BEST ? htpw_backend_best() : id) {
    case HTPW_BACKEND_PORTABLE:
        return HTPW_HAS_PORTABLE ? &htpw_portable : NULL;
#ifdef HTPW_HAS_X86_AVX2
    case HTPW_BACKEND_X86_AVX2:
        return htpw_find_avx2();
#endif
#ifdef HTPW_HAS_X86_AVX512VNNI
    case HTPW_BACKEND_X86_AVX512VNNI:
        return htpw_find_vnni();
#endif
#ifdef HTPW_HAS_X86_AMX
    case HTPW_BACKEND_X86_AMX:
        return htpw_find_amx();
#endif
#ifdef HTPW_HAS_ARMV7EM_DSP
    case HTPW_BACKEND_ARMV7EM_DSP:
        return &htpw_backend_armv7em_dsp;
#if HTPW_ANY_WIDE
    case HTPW_BACKEND_ARMV7EM_DSP_WIDE:
        return &htpw_backend_armv7em_dsp_wide;
#endif
#endif
#ifdef HTPW_HAS_ARMV81M_MVE
    case HTPW_BACKEND_ARMV81M_MVE:
        return &htpw_backend_armv81m_mve;
#endif
#ifdef HTPW_HAS_THUMB
    case HTPW_BACKEND_THUMB:
        return &htpw_backend_thumb;
#endif
#ifdef HTPW_HAS_CMSIS_NN
    case HTPW_BACKEND_CMSIS_NN:
        return &htpw_backend_cmsis_nn;
#endif
    default:
        return NULL;
    }
}

const char *htpw_backend_name(int id) {
    switch (id == HTPW_BACKEND_BEST ? htpw_backend_best() : id) {
#define HTPW_NAME_CASE(name, number, text, ...)                                                                        \
    case number:                                                                                                       \
        return text;
        HTPW_BACKENDS(HTPW_NAME_CASE)
#undef HTPW_NAME_CASE
    default:
        return NULL;
    }
}

int htpw_backend_is_available(int id) { return htpw_backend_get(id) != NULL; }

/* A head is small and used again for every tile: where the cache keeps int8 to save memory, the head need not. */
int htpw_backend_synthesis(int id) {
    if (!HTPW_ANY_BLOCKS) {
        return HTPW_BACKEND_PORTABLE;
    }
    id = id == HTPW_BACKEND_BEST ? htpw_backend_best() : id;
    return id == HTPW_BACKEND_ARMV7EM_DSP ? HTPW_BACKEND_ARMV7EM_DSP_WIDE : id;
}

uint32_t htpw_backend_scratch(const struct htpw_backend_rule *rule, uint32_t products) {
    return 2u * rule->row_block * ((products + 15u) & ~UINT32_C(15));
}

uint32_t htpw_backend_depthwise_scratch(const struct htpw_backend_rule *rule, uint32_t taps, uint32_t channels) {
    const uint32_t bytes = rule->depthwise_bytes * ((taps + 1u) & ~UINT32_C(1)) * channels;
    /* only the user's CMSIS-NN has any, and on Helium wants this, whatever the channels, or runs several times as long */
    const uint32_t least = rule->depthwise_bytes != 0 ? 4u * 124u * taps : 0u;
    return bytes > least ? bytes : least;
}
