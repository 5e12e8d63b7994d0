/* Error texts and names, from the one list in htpw.h. */
#include "htpw_internal.h"

#define HTPW_STRING_(x) #x
#define HTPW_STRING(x) HTPW_STRING_(x)

struct htpw_error_row {
    int code;
    const char *name, *text;
};

static const struct htpw_error_row htpw_errors[] = {
#define HTPW_ERROR_ROW(name, code, text) {code, #name, text},
    HTPW_ERRORS(HTPW_ERROR_ROW)
#undef HTPW_ERROR_ROW
};

#define HTPW_ERROR_COUNT (sizeof htpw_errors / sizeof htpw_errors[0])

static const struct htpw_error_row *htpw_error_find(int code) {
    for (size_t i = 0; i < HTPW_ERROR_COUNT; i++) {
        if (htpw_errors[i].code == code) {
            return &htpw_errors[i];
        }
    }
    return NULL;
}

/* Parts of the library that a build may leave out. */
static const char *htpw_left_out_text(int code) {
    switch (code) {
#define HTPW_LEFT_OUT_CASE(number, name)                                                                               \
    case number:                                                                                                       \
        return "this build of the library leaves out what the image needs: set HTPW_WITH_" #name;
#define HTPW_OPERATOR_CASE(name, id, bytes) HTPW_LEFT_OUT_CASE(HTPW_LEFT_OUT_OPERATOR(id), name)
#define HTPW_SOURCE_CASE(name, id, more) HTPW_LEFT_OUT_CASE(HTPW_LEFT_OUT_SOURCE(id), name)
#define HTPW_EXTRA_CASE(name, id) HTPW_LEFT_OUT_CASE(HTPW_LEFT_OUT_EXTRA(id), name)
        HTPW_OPERATORS(HTPW_OPERATOR_CASE)
        HTPW_STORED(HTPW_SOURCE_CASE) HTPW_HEADS(HTPW_SOURCE_CASE) HTPW_EXTRAS(HTPW_EXTRA_CASE) default : return NULL;
    }
}

const char *htpw_error_text(int code) {
    const char *left_out = htpw_left_out_text(code);
    if (left_out != NULL) {
        return left_out;
    }
    const struct htpw_error_row *row = htpw_error_find(code);
    return row != NULL ? row->text : code == 0 ? "ok" : "unknown error code";
}

const char *htpw_error_name(int code) {
    code = htpw_left_out_text(code) != NULL ? HTPW_ERR_LEFT_OUT : code;
    const struct htpw_error_row *row = htpw_error_find(code);
    return row != NULL ? row->name : code == 0 ? "OK" : "UNKNOWN";
}

int htpw_error_code(size_t i) { return i < HTPW_ERROR_COUNT ? htpw_errors[i].code : 0; }

const char *htpw_version(void) {
    return HTPW_STRING(HTPW_VERSION_MAJOR) "." HTPW_STRING(HTPW_VERSION_MINOR) "." HTPW_STRING(HTPW_VERSION_PATCH);
}
