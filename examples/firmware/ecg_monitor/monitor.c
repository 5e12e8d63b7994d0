/* An ECG monitor: samples arrive one at a time, a decision falls every second, none where the signal is bad.
 *
 * Samples come from a file of int16 (a product has its converter there), a second at a time so that the emulator can count what a
 * second costs; the front end sees them one by one.
 */
#include "../app.h"
#include "../phase.h"
#include "app_config.h"
#include "ecg_front.h"
#include "htpw.h"

enum { APP_OTHER = 0, APP_VENTRICULAR = 1, APP_NO_DECISION = 2 };

extern const uint8_t app_image[];

static uint8_t app_arena[APP_ARENA_BYTES] __attribute__((section(".app_arena"), aligned(16)));
static uint8_t app_cache[APP_CACHE_BYTES + 4u] __attribute__((section(".app_cache"), aligned(4)));
static int8_t app_window[APP_INPUT_BYTES], app_logits[APP_OUTPUT_BYTES];
static int16_t app_ring[APP_INPUT_BYTES], app_second[APP_RATE];
static struct ecg_front app_front;
static struct htpw_model app_model;
static struct htpw_context app_context;

static int app_push_second(void) {
    int is_due = 0;
    for (uint32_t i = 0; i < APP_RATE; i++) {
        is_due = ecg_front_push(&app_front, app_second[i]);
    }
    return is_due;
}

static int app_make_window(void) {
    const struct ecg_scale scale = {APP_GAIN, APP_ZERO_POINT};
    ecg_front_window(&app_front, &scale, app_window);
    return 0;
}

static void app_decide(void) {
    const uint32_t quality = ecg_front_quality(&app_front);
    int decision = APP_NO_DECISION;
    if (quality == 0) {
        (void)APP_PHASE("window", app_make_window());
        app_check(APP_PHASE("run", htpw_run(&app_context, app_window, APP_INPUT_BYTES, app_logits, APP_OUTPUT_BYTES)),
                  "run");
        decision = app_logits[1] - app_logits[0] >= APP_MARGIN ? APP_VENTRICULAR : APP_OTHER;
    }
    app_print("decision");
    app_print_int((int32_t)(app_front.samples / APP_RATE));
    app_print_int(decision);
    app_print_int((int32_t)quality);
    app_print_int(quality == 0 ? app_logits[0] : 0);
    app_print_int(quality == 0 ? app_logits[1] : 0);
    app_print("\n");
}

int app_main(void) {
    app_print("htpw ");
    app_print(htpw_version());
    app_print(" ");
    app_print(htpw_backend_name(HTPW_BACKEND_BEST));
    app_print(" 0\n");
    app_check(APP_PHASE("open", htpw_model_open(&app_model, app_image, APP_IMAGE_BYTES)), "open");
    app_check(APP_PHASE("bind", htpw_bind(&app_context, &app_model, HTPW_BACKEND_BEST, app_arena, APP_ARENA_BYTES,
                                          app_cache, APP_CACHE_BYTES, HTPW_BOOT)),
              "bind");
    ecg_front_open(&app_front, app_ring, APP_INPUT_BYTES, APP_RATE);
    const uint32_t file = app_open("samples", 0);
    while (app_read(file, app_second, sizeof app_second) == sizeof app_second) {
        if (APP_PHASE("second", app_push_second())) {
            app_decide();
        }
    }
    app_print("stack");
    app_print_int((int32_t)app_stack_peak());
    app_print("\ndone\n");
    return 0;
}
