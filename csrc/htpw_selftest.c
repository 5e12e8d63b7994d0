#include "htpw_internal.h"
int htpw_selftest(int backend, void *memory, size_t bytes) { (void)backend; (void)memory; (void)bytes; return HTPW_ERR_SELFTEST; }
