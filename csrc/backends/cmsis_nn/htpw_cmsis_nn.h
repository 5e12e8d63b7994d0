/* htpw_cmsis_nn.h - the table of the adapter to the user's own CMSIS-NN; see README.md. */
#ifndef HTPW_CMSIS_NN_H
#define HTPW_CMSIS_NN_H

#include "../htpw_backend.h"

#ifdef HTPW_CONFIG_CMSIS_NN
#define HTPW_HAS_CMSIS_NN 1
extern const struct htpw_backend htpw_backend_cmsis_nn;
#endif

#endif
