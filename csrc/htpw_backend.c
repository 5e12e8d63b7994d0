/* The list of backends: their memory rules, which of them this build has, and the one choice among them. */
#include "backends/htpw_backend.h"

/* Rules are data for every backend, also for those that this machine cannot run: a host plans for a target. */
static const struct htpw_backend_rule htpw_rules[] = {
#define HTPW_RULE_ROW(name, id, text, ...) [id] = {__VA_ARGS__},
    HTPW_BACKENDS(HTPW_RULE_ROW)
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

static const struct htpw_backend htpw_portable = {
    HTPW_BACKEND_PORTABLE, htpw_portable_conv,  htpw_portable_depthwise, htpw_portable_conv1x1, htpw_portable_packed,
    htpw_add_s8_ref,       htpw_avgpool_s8_ref, htpw_maxpool_s8_ref};

/* The best backend of this build and CPU. */
static int htpw_backend_best(void) {
    return HTPW_BACKEND_PORTABLE;
}

const struct htpw_backend_rule *htpw_backend_rule(int id) {
    id = id == HTPW_BACKEND_BEST ? htpw_backend_best() : id;
    return id >= HTPW_BACKEND_PORTABLE && id < HTPW_BACKEND_COUNT ? &htpw_rules[id] : NULL;
}

const struct htpw_backend *htpw_backend_get(int id) {
    switch (id == HTPW_BACKEND_BEST ? htpw_backend_best() : id) {
    case HTPW_BACKEND_PORTABLE:
        return &htpw_portable;
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

uint32_t htpw_backend_scratch(const struct htpw_backend_rule *rule, uint32_t products) {
    return 2u * rule->row_block * ((products + 15u) & ~UINT32_C(15));
}

uint32_t htpw_backend_depthwise_scratch(const struct htpw_backend_rule *rule, uint32_t taps, uint32_t channels) {
    return rule->depthwise_bytes * ((taps + 1u) & ~UINT32_C(1)) * channels;
}
