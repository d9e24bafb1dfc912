/* A simulated libnvidia-ml.so.1: boards whose power trace, and so whose energy, is known exactly.
 *
 * Written from NVIDIA's public NVML API reference; the unmodified nvidia-ml-py loads it. It marks
 * itself twice, by the symbol `nvmlsim_marker` and by a driver version that ends in "-sim", so that
 * a run on it cannot pass for a measurement.
 *
 * Time is virtual: it stands still between calls, a call takes what it is told to take, and
 * `nvmlsim_advance` moves it on. With `real=1` it is CLOCK_MONOTONIC less `epoch`, for tests across
 * processes, which pass their scenario in NVMLSIM: "key=value;key@device=value;trace=0:90,2:600;
 * fail=FUNCTION:CODE:FROM". Keys are the fields of `struct board` and the globals beside them.
 *
 *   gcc -O1 -shared -fPIC -o DIR/libnvidia-ml.so.1 nvmlsim.c -lm; then LD_LIBRARY_PATH=DIR
 */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define BOARDS 4
#define RULES 32
#define PIDS 8

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
       INSUFFICIENT_SIZE = 7, LOST = 15 };
enum { FI_VIOLATION_POWER = 74, FI_VIOLATION_THERMAL = 75, FI_ENERGY = 83, FI_POWER_AVERAGE = 185,
       FI_POWER_INSTANT = 186, FI_SW_THERMAL = 269, FI_HW_THERMAL = 270, FI_HW_BRAKE = 271 };
enum { REASONS, TEMPERATURE, SM_CLOCK, MEMORY_USED, TIMELINES };

/* A piecewise linear curve with its integral; constant before the first point and after the last. */
struct curve { int n; double *t, *v, *c; };

struct board {
    /* energy counter */
    double tick, jitter, phase, quantum, start_mj, gain, offset;
    /* sensor: the mean of `sensor_window` seconds in every `sensor_period`; 0: sees everything */
    double sensor_window, sensor_period, sensor_phase, average_window, usage_average;
    /* calls: duration of a counter read, its random part, all others; when in it the value is taken */
    double energy_latency, energy_latency_spread, call_latency, sample_at;
    /* faults of the counter: times, and what happens then */
    double reset_at, freeze_at, jump_at, jump_mj, lost_at, zero, wrap32, energy_raw, power_raw, counter_gain;
    double module_scope, mig, ecc, persistence, power_limit;
    double memory_total, memory_reserved;
    /* state */
    struct curve power, lines[TIMELINES];
    long sensor_index; double sensor_time, sensor_value, sensor_joules;
    long tick_index; double tick_time; double tick_mj;
    int num_pids; unsigned pids[PIDS];
};
struct rule { char name[64]; int board, code, after; double from; };

static struct board boards[BOARDS];
static struct rule rules[RULES], field_rules[RULES];
static int num_rules, num_field_rules, initialised, ready;
static double now_virtual, real, epoch, num_boards = 1, init_code, seed, no_suffix;
static uint64_t calls;

int nvmlsim_marker = 1;

static double uniform(uint64_t key) { /* splitmix64 */
    uint64_t z = key + (uint64_t)seed * 0x9E3779B97F4A7C15ull + 0x9E3779B97F4A7C15ull;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}
static double normal(uint64_t key) {
    double u = uniform(2 * key + 1), v = uniform(2 * key + 2);
    return sqrt(-2 * log(u + 1e-300)) * cos(2 * M_PI * v);
}

double nvmlsim_now(void) {
    if (!real) return now_virtual;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec - epoch;
}
void nvmlsim_advance(double seconds) {
    if (seconds <= 0) return;
    if (!real) { now_virtual += seconds; return; }
    struct timespec t = { (time_t)seconds, (long)(fmod(seconds, 1) * 1e9) };
    nanosleep(&t, NULL);
}

/* Curves. */

static void curve_set(struct curve *q, int n, const double *t, const double *v) {
    free(q->t); free(q->v); free(q->c);
    q->n = n;
    q->t = malloc(n * sizeof(double)); q->v = malloc(n * sizeof(double)); q->c = malloc(n * sizeof(double));
    double sum = 0;
    for (int i = 0; i < n; i++) {
        if (i) sum += (t[i] - t[i - 1]) * (v[i] + v[i - 1]) / 2;
        q->t[i] = t[i]; q->v[i] = v[i]; q->c[i] = sum;
    }
}
static int curve_index(const struct curve *q, double t) { /* last point at or before t, or -1 */
    int low = -1, high = q->n;
    while (high - low > 1) { int mid = (low + high) / 2; if (q->t[mid] <= t) low = mid; else high = mid; }
    return low;
}
static double curve_at(const struct curve *q, double t) {
    if (!q->n) return 0;
    int i = curve_index(q, t);
    if (i < 0) return q->v[0];
    if (i == q->n - 1) return q->v[i];
    return q->v[i] + (q->v[i + 1] - q->v[i]) * (t - q->t[i]) / (q->t[i + 1] - q->t[i]);
}
static double curve_step(const struct curve *q, double t) { /* without interpolation */
    if (!q->n) return 0;
    int i = curve_index(q, t);
    return q->v[i < 0 ? 0 : i];
}
static double curve_integral(const struct curve *q, double t) { /* from the first point */
    if (!q->n) return 0;
    int i = curve_index(q, t);
    if (i < 0) return q->v[0] * (t - q->t[0]);
    return q->c[i] + (t - q->t[i]) * (q->v[i] + curve_at(q, t)) / 2;
}
/* Seconds until t in which a bit of the reasons was set. */
static double seconds_of_bit(const struct curve *q, unsigned bit, double t) {
    double sum = 0;
    for (int i = 0; i < q->n && q->t[i] < t; i++) {
        double end = i + 1 < q->n && q->t[i + 1] < t ? q->t[i + 1] : t;
        if ((unsigned)q->v[i] & bit) sum += end - q->t[i];
    }
    return sum;
}
/* The exact joules of a board between two moments. */
double nvmlsim_true_joules(int board, double from, double to) {
    return curve_integral(&boards[board].power, to) - curve_integral(&boards[board].power, from);
}

/* What the sensor has seen until t, as the counter adds it up. Called with growing t. */
static double sensor_joules(struct board *b, double t) {
    if (b->sensor_window <= 0) return curve_integral(&b->power, t);
    if (b->sensor_index < 0) { b->sensor_index = 0; b->sensor_time = 0; b->sensor_value = curve_at(&b->power, 0); }
    for (;;) {
        double begin = b->sensor_phase + b->sensor_index * b->sensor_period;
        double end = begin + b->sensor_window;
        if (end > t) break;
        b->sensor_joules += b->sensor_value * (end - b->sensor_time);
        b->sensor_time = end;
        b->sensor_value = (curve_integral(&b->power, end) - curve_integral(&b->power, begin)) / b->sensor_window;
        b->sensor_index++;
    }
    return b->sensor_joules + b->sensor_value * (t - b->sensor_time);
}
static double instant_power(struct board *b, double t) {
    double p;
    if (b->sensor_window <= 0) p = curve_at(&b->power, t);
    else { sensor_joules(b, t); p = b->sensor_value; }
    return b->gain * p + b->offset;
}
static double average_power(struct board *b, double t) {
    double w = b->average_window;
    return b->gain * (curve_integral(&b->power, t) - curve_integral(&b->power, t - w)) / w + b->offset;
}
/* The counter in mJ at t: what the last update left there. */
static uint64_t counter(int index, double t) {
    struct board *b = &boards[index];
    if (t > b->freeze_at) t = b->freeze_at;
    for (;;) {
        long next = b->tick_index + 1;
        double wobble = b->jitter * normal((uint64_t)next * 8 + (uint64_t)index);
        wobble = wobble > 0.45 ? 0.45 : wobble < -0.45 ? -0.45 : wobble;
        double at = b->phase + b->tick * ((double)next + wobble);
        if (at > t) break;
        b->tick_index = next; b->tick_time = at;
        double joules = b->counter_gain * (b->gain * sensor_joules(b, at) + b->offset * at);
        double mj = b->start_mj + 1000 * joules;
        if (at >= b->reset_at) mj = 1000 * (joules - (b->gain * nvmlsim_true_joules(index, b->power.t[0], b->reset_at) + b->offset * b->reset_at));
        if (at >= b->jump_at) mj += b->jump_mj;
        b->tick_mj = floor(mj / b->quantum) * b->quantum;
    }
    if (b->zero) return 0;
    if (b->energy_raw >= 0) return (uint64_t)b->energy_raw;
    uint64_t value = b->tick_mj > 0 ? (uint64_t)b->tick_mj : 0;
    return b->wrap32 ? value & 0xFFFFFFFFull : value;
}

/* Control. */

void nvmlsim_reset(void) {
    for (int i = 0; i < BOARDS; i++) {
        struct board *b = &boards[i];
        free(b->power.t); free(b->power.v); free(b->power.c);
        for (int k = 0; k < TIMELINES; k++) { free(b->lines[k].t); free(b->lines[k].v); free(b->lines[k].c); }
        memset(b, 0, sizeof *b);
        b->tick = 0.1; b->quantum = 1; b->start_mj = 1e7; b->gain = b->counter_gain = 1; b->sensor_period = 0.1;
        b->average_window = 1; b->usage_average = 1; b->sample_at = 0.5; b->ecc = 1;
        b->persistence = 1; b->power_limit = 700; b->memory_total = 80e9; b->memory_reserved = 5e8;
        b->reset_at = b->freeze_at = b->jump_at = b->lost_at = 1e300;
        b->energy_raw = b->power_raw = -1;
        b->sensor_index = -1; b->tick_index = -1; b->tick_mj = b->start_mj;
        double zero = 0, idle = 90, warm = 40, clock = 1755, used = 6e8;
        curve_set(&b->power, 1, &zero, &idle);
        curve_set(&b->lines[REASONS], 1, &zero, &zero);
        curve_set(&b->lines[TEMPERATURE], 1, &zero, &warm);
        curve_set(&b->lines[SM_CLOCK], 1, &zero, &clock);
        curve_set(&b->lines[MEMORY_USED], 1, &zero, &used);
    }
    num_rules = num_field_rules = 0;
    now_virtual = 0; real = 0; epoch = 0; num_boards = 1; init_code = 0; seed = 0; initialised = 0;
    no_suffix = 0; calls = 0; ready = 1;
}
void nvmlsim_trace(int board, int n, const double *t, const double *watts) { curve_set(&boards[board].power, n, t, watts); }
void nvmlsim_timeline(int board, int which, int n, const double *t, const double *v) { curve_set(&boards[board].lines[which], n, t, v); }
void nvmlsim_pid(int board, unsigned pid) { if (boards[board].num_pids < PIDS) boards[board].pids[boards[board].num_pids++] = pid; }
/* A function fails with `code` from a moment on, after some successful calls; board -1: on all. */
void nvmlsim_fail(const char *name, int board, int code, double from, int after) {
    struct rule *r = &rules[num_rules++ % RULES];
    snprintf(r->name, sizeof r->name, "%s", name); r->board = board; r->code = code; r->from = from; r->after = after;
}
/* A field value carries `code` in its nvmlReturn; the call itself succeeds. */
void nvmlsim_fail_field(int field, int code, double from) {
    struct rule *r = &field_rules[num_field_rules++ % RULES];
    r->board = field; r->code = code; r->from = from;
}
#define KEY(name) if (!strcmp(key, #name)) { b->name = value; return 0; }
int nvmlsim_set(int board, const char *key, double value) {
    struct board *b = &boards[board];
    if (!strcmp(key, "start_mj")) b->tick_mj = value;
    KEY(tick) KEY(jitter) KEY(phase) KEY(quantum) KEY(start_mj) KEY(gain) KEY(offset)
    KEY(sensor_window) KEY(sensor_period) KEY(sensor_phase) KEY(average_window) KEY(usage_average)
    KEY(energy_latency) KEY(energy_latency_spread) KEY(call_latency) KEY(sample_at)
    KEY(reset_at) KEY(freeze_at) KEY(jump_at) KEY(jump_mj) KEY(lost_at) KEY(zero) KEY(wrap32)
    KEY(counter_gain) KEY(energy_raw) KEY(power_raw) KEY(module_scope) KEY(mig) KEY(ecc) KEY(persistence) KEY(power_limit)
    KEY(memory_total) KEY(memory_reserved)
    if (!strcmp(key, "real")) { real = value; return 0; }
    if (!strcmp(key, "epoch")) { epoch = value; return 0; }
    if (!strcmp(key, "num_boards")) { num_boards = value; return 0; }
    if (!strcmp(key, "init_code")) { init_code = value; return 0; }
    if (!strcmp(key, "seed")) { seed = value; return 0; }
    if (!strcmp(key, "no_suffix")) { no_suffix = value; return 0; }
    if (!strcmp(key, "pid")) { nvmlsim_pid(board, (unsigned)value); return 0; }
    return 1;
}
void nvmlsim_load(void) {
    nvmlsim_reset();
    const char *text = getenv("NVMLSIM");
    if (!text) return;
    char *copy = strdup(text), *place = NULL;
    for (char *part = strtok_r(copy, ";", &place); part; part = strtok_r(NULL, ";", &place)) {
        char *value = strchr(part, '=');
        if (!value) { fprintf(stderr, "NVMLSIM: no value in %s\n", part); exit(99); }
        *value++ = 0;
        int board = 0;
        char *at = strchr(part, '@');
        if (at) { *at = 0; board = atoi(at + 1); }
        if (!strcmp(part, "trace")) {
            double t[512], w[512]; int n = 0; char *inner = NULL;
            for (char *p = strtok_r(value, ",", &inner); p && n < 512; p = strtok_r(NULL, ",", &inner))
                if (sscanf(p, "%lf:%lf", &t[n], &w[n]) == 2) n++;
            nvmlsim_trace(board, n, t, w);
        } else if (!strcmp(part, "fail")) {
            char name[64]; int code; double from = -1e300;
            if (sscanf(value, "%63[^:]:%d:%lf", name, &code, &from) < 2) exit(99);
            nvmlsim_fail(name, at ? board : -1, code, from, 0);
        } else if (!strcmp(part, "fail_field")) {
            int field, code; double from = -1e300;
            if (sscanf(value, "%d:%d:%lf", &field, &code, &from) < 2) exit(99);
            nvmlsim_fail_field(field, code, from);
        } else if (nvmlsim_set(board, part, atof(value))) {
            fprintf(stderr, "NVMLSIM: unknown key %s\n", part); exit(99);
        }
    }
    free(copy);
}
__attribute__((constructor)) static void on_load(void) { nvmlsim_load(); }

/* Every NVML call: does it fail, and how long does it take? */
static int enter(const char *name, int board, double latency) {
    calls++;
    nvmlsim_advance(latency);
    if (!initialised) return UNINITIALIZED;
    double t = nvmlsim_now();
    for (int i = 0; i < num_rules; i++) {
        struct rule *r = &rules[i];
        if (strcmp(r->name, name) || (r->board >= 0 && board >= 0 && r->board != board) || t < r->from) continue;
        if (r->after > 0) { r->after--; continue; }
        return r->code;
    }
    if (board >= 0 && t >= boards[board].lost_at) return LOST;
    return SUCCESS;
}
static int board_of(const void *handle) { return (int)(intptr_t)handle - 1; }
#define ENTER(handle) \
    int board = board_of(handle); \
    if (board < 0 || board >= (int)num_boards) return INVALID_ARGUMENT; \
    struct board *b = &boards[board]; (void)b; \
    int code = enter(__func__, board, b->call_latency); \
    if (code) return code;
#define SYSTEM() { int code = enter(__func__, -1, 0); if (code) return code; }

/* NVML. */

int nvmlInitWithFlags(unsigned flags) { (void)flags; if (init_code) return (int)init_code; initialised++; return SUCCESS; }
int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { if (!initialised) return UNINITIALIZED; initialised--; return SUCCESS; }
const char *nvmlErrorString(int code) {
    switch (code) {
    case 0: return "Success"; case 1: return "Uninitialized"; case 2: return "Invalid Argument";
    case 3: return "Not Supported"; case 4: return "Insufficient Permissions"; case 6: return "Not Found";
    case 9: return "Driver Not Loaded"; case 10: return "Timeout"; case 12: return "NVML Shared Library Not Found";
    case 13: return "Function Not Found"; case 15: return "GPU is lost"; case 16: return "GPU requires restart";
    case 18: return "Driver/library version mismatch"; default: return "Unknown Error";
    }
}
int nvmlSystemGetDriverVersion(char *text, unsigned size) { SYSTEM() snprintf(text, size, no_suffix ? "999.0" : "999.0-sim"); return SUCCESS; }
int nvmlSystemGetNVMLVersion(char *text, unsigned size) { SYSTEM() snprintf(text, size, "13.999.0-sim"); return SUCCESS; }
int nvmlSystemGetCudaDriverVersion_v2(int *version) { SYSTEM() *version = 13000; return SUCCESS; }
int nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }
int nvmlDeviceGetCount_v2(unsigned *count) { SYSTEM() *count = (unsigned)num_boards; return SUCCESS; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    SYSTEM()
    if (index >= (unsigned)num_boards) return INVALID_ARGUMENT;
    *handle = (void *)(intptr_t)(index + 1);
    return enter("nvmlDeviceGetHandleByIndex_v2", (int)index, 0);
}
static void uuid_of(int board, char *text, unsigned size) { snprintf(text, size, "GPU-00000000-0000-0000-0000-00000000000%d", board); }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    SYSTEM()
    char own[80];
    for (int i = 0; i < (int)num_boards; i++) {
        uuid_of(i, own, sizeof own);
        if (!strcmp(uuid, own)) { *handle = (void *)(intptr_t)(i + 1); return enter("nvmlDeviceGetHandleByUUID", i, 0); }
    }
    return strncmp(uuid, "GPU-", 4) && strncmp(uuid, "MIG-", 4) ? INVALID_ARGUMENT : NOT_FOUND;
}
int nvmlDeviceGetUUID(void *h, char *text, unsigned size) { ENTER(h) uuid_of(board, text, size); return SUCCESS; }
int nvmlDeviceGetIndex(void *h, unsigned *index) { ENTER(h) *index = (unsigned)board; return SUCCESS; }
int nvmlDeviceGetName(void *h, char *text, unsigned size) { ENTER(h) snprintf(text, size, "NVIDIA SIM100"); return SUCCESS; }
int nvmlDeviceGetVbiosVersion(void *h, char *text, unsigned size) { ENTER(h) snprintf(text, size, "00.00.00"); return SUCCESS; }
int nvmlDeviceGetArchitecture(void *h, unsigned *value) { ENTER(h) *value = 9; return SUCCESS; }
int nvmlDeviceGetCudaComputeCapability(void *h, int *major, int *minor) { ENTER(h) *major = 9; *minor = 0; return SUCCESS; }
int nvmlDeviceGetBrand(void *h, unsigned *value) { ENTER(h) *value = 2; return SUCCESS; }
int nvmlDeviceGetComputeMode(void *h, unsigned *value) { ENTER(h) *value = 0; return SUCCESS; }
int nvmlDeviceGetPersistenceMode(void *h, unsigned *value) { ENTER(h) *value = (unsigned)b->persistence; return SUCCESS; }
int nvmlDeviceGetMigMode(void *h, unsigned *current, unsigned *pending) { ENTER(h) *current = *pending = (unsigned)b->mig; return SUCCESS; }
int nvmlDeviceGetEccMode(void *h, unsigned *current, unsigned *pending) { ENTER(h) *current = *pending = (unsigned)b->ecc; return SUCCESS; }
static int limit(void *h, unsigned *value, const char *name) {
    int board = board_of(h);
    if (board < 0 || board >= (int)num_boards) return INVALID_ARGUMENT;
    int code = enter(name, board, boards[board].call_latency);
    if (!code) *value = (unsigned)(1000 * boards[board].power_limit);
    return code;
}
int nvmlDeviceGetEnforcedPowerLimit(void *h, unsigned *value) { return limit(h, value, __func__); }
int nvmlDeviceGetPowerManagementLimit(void *h, unsigned *value) { return limit(h, value, __func__); }
int nvmlDeviceGetPowerManagementDefaultLimit(void *h, unsigned *value) { return limit(h, value, __func__); }
int nvmlDeviceGetPowerManagementLimitConstraints(void *h, unsigned *low, unsigned *high) { ENTER(h) *low = 200000; *high = 700000; return SUCCESS; }
int nvmlDeviceGetTemperature(void *h, unsigned sensor, unsigned *value) {
    ENTER(h)
    if (sensor) return INVALID_ARGUMENT;
    *value = (unsigned)curve_at(&b->lines[TEMPERATURE], nvmlsim_now());
    return SUCCESS;
}
struct temperature { unsigned version, sensor; int value; };
int nvmlDeviceGetTemperatureV(void *h, struct temperature *t) {
    ENTER(h)
    if (t->version != 0x100000C) return INVALID_ARGUMENT;
    t->value = (int)curve_at(&b->lines[TEMPERATURE], nvmlsim_now());
    return SUCCESS;
}
int nvmlDeviceGetClockInfo(void *h, unsigned kind, unsigned *mhz) {
    ENTER(h)
    *mhz = kind == 2 ? 2619 : (unsigned)curve_step(&b->lines[SM_CLOCK], nvmlsim_now());
    return SUCCESS;
}
int nvmlDeviceGetMaxClockInfo(void *h, unsigned kind, unsigned *mhz) { ENTER(h) *mhz = kind == 2 ? 2619 : 1980; return SUCCESS; }
int nvmlDeviceGetApplicationsClock(void *h, unsigned kind, unsigned *mhz) { ENTER(h) (void)kind; (void)mhz; return NOT_SUPPORTED; }
int nvmlDeviceGetCurrentClocksEventReasons(void *h, unsigned long long *bits) {
    ENTER(h)
    *bits = (unsigned long long)curve_step(&b->lines[REASONS], nvmlsim_now());
    return SUCCESS;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *h, unsigned long long *bits) { return nvmlDeviceGetCurrentClocksEventReasons(h, bits); }
struct violation { unsigned long long reference, violation; };
int nvmlDeviceGetViolationStatus(void *h, unsigned policy, struct violation *v) {
    ENTER(h)
    if (policy > 1) return NOT_SUPPORTED;
    double t = nvmlsim_now();
    v->reference = (unsigned long long)(t * 1e6);
    v->violation = (unsigned long long)(1e9 * seconds_of_bit(&b->lines[REASONS], policy ? 0x60 : 0x4, t));
    return SUCCESS;
}
struct utilization { unsigned gpu, memory; };
int nvmlDeviceGetUtilizationRates(void *h, struct utilization *u) { ENTER(h) u->gpu = u->memory = 0; return SUCCESS; }
struct process { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; };
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *count, struct process *found) {
    ENTER(h)
    unsigned room = found ? *count : 0;
    *count = (unsigned)b->num_pids;
    if (room < *count) return INSUFFICIENT_SIZE;
    for (int i = 0; i < b->num_pids; i++) found[i] = (struct process){ b->pids[i], 500000000, ~0u, ~0u };
    return SUCCESS;
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *h, unsigned *count, struct process *found) { ENTER(h) (void)found; *count = 0; return SUCCESS; }
struct memory { unsigned long long total, free, used; };
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };
int nvmlDeviceGetMemoryInfo(void *h, struct memory *m) {
    ENTER(h)
    double used = curve_step(&b->lines[MEMORY_USED], nvmlsim_now()) + b->memory_reserved;
    *m = (struct memory){ (uint64_t)b->memory_total, (uint64_t)(b->memory_total - used), (uint64_t)used };
    return SUCCESS;
}
int nvmlDeviceGetMemoryInfo_v2(void *h, struct memory_v2 *m) {
    ENTER(h)
    if (m->version != 0x02000028) return INVALID_ARGUMENT;
    double used = curve_step(&b->lines[MEMORY_USED], nvmlsim_now());
    *m = (struct memory_v2){ m->version, (uint64_t)b->memory_total, (uint64_t)b->memory_reserved,
                             (uint64_t)(b->memory_total - used - b->memory_reserved), (uint64_t)used };
    return SUCCESS;
}
int nvmlDeviceGetPowerUsage(void *h, unsigned *mw) {
    ENTER(h)
    if (b->module_scope) return NOT_SUPPORTED;
    double t = nvmlsim_now();
    *mw = (unsigned)(1000 * (b->usage_average ? average_power(b, t) : instant_power(b, t)) + 0.5);
    if (b->power_raw >= 0) *mw = (unsigned)b->power_raw;
    return SUCCESS;
}
static int read_counter(int board, unsigned long long *mj) {
    struct board *b = &boards[board];
    double latency = b->energy_latency + b->energy_latency_spread * uniform(calls * 7919 + 13);
    nvmlsim_advance(latency * b->sample_at);
    *mj = counter(board, nvmlsim_now());
    nvmlsim_advance(latency * (1 - b->sample_at));
    return SUCCESS;
}
#ifndef WITHOUT_ENERGY
int nvmlDeviceGetTotalEnergyConsumption(void *h, unsigned long long *mj) {
    ENTER(h)
    return read_counter(board, mj);
}
#endif
struct field { uint32_t id, scope; int64_t timestamp, latency; int32_t type, code; union { double d; uint32_t u; uint64_t u64; } value; };
int nvmlDeviceGetFieldValues(void *h, int count, struct field *fields) {
    ENTER(h)
    for (int i = 0; i < count; i++) {
        struct field *f = &fields[i];
        double t = nvmlsim_now();
        f->timestamp = (int64_t)(t * 1e6); f->latency = 1; f->code = SUCCESS; f->type = 1; f->value.u64 = 0;
        for (int k = 0; k < num_field_rules; k++)
            if (field_rules[k].board == (int)f->id && t >= field_rules[k].from) f->code = field_rules[k].code;
        if (f->code) { f->value.u64 = 123456; continue; } /* rubbish, as a careless reader would use */
        switch (f->id) {
        case FI_ENERGY: f->type = 3; { unsigned long long mj; read_counter(board, &mj); f->value.u64 = mj; } break;
        case FI_POWER_INSTANT: case FI_POWER_AVERAGE:
            if (b->module_scope ? f->scope != 1 : f->scope != 0) { f->code = NOT_SUPPORTED; break; }
            f->value.u = (uint32_t)(1000 * (f->id == FI_POWER_INSTANT ? instant_power(b, t) : average_power(b, t)) + 0.5);
            if (b->power_raw >= 0) f->value.u = (uint32_t)b->power_raw;
            break;
        case FI_VIOLATION_POWER: f->type = 3; f->value.u64 = (uint64_t)(1e9 * seconds_of_bit(&b->lines[REASONS], 0x4, t)); break;
        case FI_VIOLATION_THERMAL: f->type = 3; f->value.u64 = (uint64_t)(1e9 * seconds_of_bit(&b->lines[REASONS], 0x60, t)); break;
        case FI_SW_THERMAL: f->type = 3; f->value.u64 = (uint64_t)(1e9 * seconds_of_bit(&b->lines[REASONS], 0x20, t)); break;
        case FI_HW_THERMAL: f->type = 3; f->value.u64 = (uint64_t)(1e9 * seconds_of_bit(&b->lines[REASONS], 0x40, t)); break;
        case FI_HW_BRAKE: f->type = 3; f->value.u64 = (uint64_t)(1e9 * seconds_of_bit(&b->lines[REASONS], 0x80, t)); break;
        default: f->code = NOT_SUPPORTED;
        }
    }
    return SUCCESS;
}
