/* The firmware of pyhtpw/target/qemu.py: start-up code of a bare Cortex-M board, and a loop that performs the calls of one
 * job. It reads the job, an image of memory with buffers and a table of calls, from the host through semihosting, calls the
 * functions, and gives the whole memory back. It has no other input or output, and no vendor's code.
 */
#include <stddef.h>
#include <stdint.h>

/* Values that qemu.py knows too. */
#define HTPW_TARGET_ARGS 14
#define HTPW_TARGET_MAGIC UINT32_C(0x4A505448)
enum { HTPW_TARGET_DONE = 1, HTPW_TARGET_FAULT = 2 };

struct htpw_target_call {
    uint32_t function, args[HTPW_TARGET_ARGS];
    uint32_t result, ticks; /* r0; timer ticks of the call */
};

struct htpw_target_job {
    uint32_t magic, bytes, calls, table; /* bytes of the whole image; number of calls; address of the first */
    uint32_t state, index;               /* what became of it; the call that runs */
    uint32_t fault[12];                  /* r0 r1 r2 r3 r12 lr pc xpsr CFSR HFSR MMFAR BFAR */
};

typedef uint32_t htpw_target_function(uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t,
                                      uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t);

/* From the linker script. */
extern uint32_t htpw_target_stack_top[], htpw_target_image[], htpw_target_image_end[];

void htpw_target_reset(void);
void htpw_target_fault(void);
void htpw_target_fault_report(const uint32_t *frame);
void htpw_target_mark(void);

#define HTPW_TARGET_REGISTER(address) (*(volatile uint32_t *)(uintptr_t)(address))
#define HTPW_TARGET_CCR HTPW_TARGET_REGISTER(0xE000ED14)
#define HTPW_TARGET_CPACR HTPW_TARGET_REGISTER(0xE000ED88)
#define HTPW_TARGET_FAULT_STATUS(i) HTPW_TARGET_REGISTER(0xE000ED28 + 4u * (i)) /* CFSR HFSR DFSR MMFAR BFAR */
#define HTPW_TARGET_TIMER(i) HTPW_TARGET_REGISTER(0xE000E010 + 4u * (i))        /* SysTick: control, reload, value */
#define HTPW_TARGET_TIMER_MASK UINT32_C(0xFFFFFF)

__attribute__((section(".vectors"), used)) static const void *const htpw_target_vectors[16] = {
    htpw_target_stack_top,    (const void *)htpw_target_reset, (const void *)htpw_target_fault,
    (const void *)htpw_target_fault, (const void *)htpw_target_fault, (const void *)htpw_target_fault,
    (const void *)htpw_target_fault, (const void *)htpw_target_fault};

static struct htpw_target_job *htpw_target_job(void) { return (struct htpw_target_job *)(void *)htpw_target_image; }

/* Asks the host for a service. */
static uint32_t htpw_target_semihost(uint32_t operation, const void *arguments) {
    register uint32_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = arguments;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

/* Opens a file in the folder in which the emulator runs; mode 1 reads, 5 writes bytes. */
static uint32_t htpw_target_open(const char *name, uint32_t length, uint32_t mode) {
    const uint32_t arguments[3] = {(uint32_t)(uintptr_t)name, mode, length};
    return htpw_target_semihost(0x01, arguments);
}

/* Writes the image back and ends the emulator. */
static void htpw_target_finish(uint32_t state) {
    struct htpw_target_job *job = htpw_target_job();
    job->state = state;
    const uint32_t file = htpw_target_open("result", 6, 5);
    const uint32_t arguments[3] = {file, (uint32_t)(uintptr_t)job, job->bytes};
    (void)htpw_target_semihost(0x05, arguments);
    (void)htpw_target_semihost(0x02, &file);
    (void)htpw_target_semihost(0x18, (const void *)(uintptr_t)0x20026); /* the application ended by itself */
    for (;;) {
    }
}

__attribute__((naked)) void htpw_target_fault(void) {
    __asm__ volatile("mrs r0, msp\n bl htpw_target_fault_report");
}

/* Keeps what the core stacked and its fault registers; every fault ends here, since only HardFault is enabled. */
void htpw_target_fault_report(const uint32_t *frame) {
    struct htpw_target_job *job = htpw_target_job();
    for (int i = 0; i < 8; i++) {
        job->fault[i] = frame[i];
    }
    for (int i = 0, status = 0; i < 5; i++) {
        if (i != 2) {
            job->fault[8 + status++] = HTPW_TARGET_FAULT_STATUS((uint32_t)i);
        }
    }
    htpw_target_finish(HTPW_TARGET_FAULT);
}

/* Stands in the log between the instructions of one call and those of the next. */
__attribute__((noinline)) void htpw_target_mark(void) { __asm__ volatile("" ::: "memory"); }

void htpw_target_reset(void) {
    struct htpw_target_job *job = htpw_target_job();
#if defined(__ARM_FEATURE_MVE) || defined(__ARM_FP)
    HTPW_TARGET_CPACR |= UINT32_C(0xF) << 20; /* coprocessors 10 and 11: floating point and Helium registers */
    __asm__ volatile("dsb\n isb" ::: "memory");
#endif
#if !defined(__ARM_FEATURE_UNALIGNED)
    HTPW_TARGET_CCR |= UINT32_C(1) << 3; /* cores of this architecture fault on unaligned words, so let the board do it */
#endif
    const uint32_t file = htpw_target_open("job", 3, 1);
    const uint32_t room = (uint32_t)((uintptr_t)htpw_target_image_end - (uintptr_t)job);
    const uint32_t arguments[3] = {file, (uint32_t)(uintptr_t)job, room};
    (void)htpw_target_semihost(0x06, arguments);
    if (job->magic != HTPW_TARGET_MAGIC) {
        (void)htpw_target_semihost(0x18, (const void *)(uintptr_t)0x20023); /* any reason but the one above: status 1 */
    }
    HTPW_TARGET_TIMER(1) = HTPW_TARGET_TIMER_MASK;
    HTPW_TARGET_TIMER(2) = 0;
    HTPW_TARGET_TIMER(0) = 5; /* on, at the core's clock, no interrupt */
    struct htpw_target_call *call = (struct htpw_target_call *)(uintptr_t)job->table;
    for (; job->index < job->calls; job->index++, call++) {
        htpw_target_function *const function = (htpw_target_function *)(uintptr_t)call->function;
        const uint32_t *a = call->args;
        htpw_target_mark();
        const uint32_t start = HTPW_TARGET_TIMER(2); /* counts down */
        call->result = function(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13]);
        call->ticks = (start - HTPW_TARGET_TIMER(2)) & HTPW_TARGET_TIMER_MASK;
    }
    htpw_target_mark();
    htpw_target_finish(HTPW_TARGET_DONE);
}
