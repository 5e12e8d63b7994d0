/* Error texts and names, from the one list in htpw.h. */
#include "htpw.h"

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

const char *htpw_error_text(int code) {
    const struct htpw_error_row *row = htpw_error_find(code);
    return row != NULL ? row->text : code == 0 ? "ok" : "unknown error code";
}

const char *htpw_error_name(int code) {
    const struct htpw_error_row *row = htpw_error_find(code);
    return row != NULL ? row->name : code == 0 ? "OK" : "UNKNOWN";
}

int htpw_error_code(size_t i) { return i < HTPW_ERROR_COUNT ? htpw_errors[i].code : 0; }

const char *htpw_version(void) {
    return HTPW_STRING(HTPW_VERSION_MAJOR) "." HTPW_STRING(HTPW_VERSION_MINOR) "." HTPW_STRING(HTPW_VERSION_PATCH);
}
