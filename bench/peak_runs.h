#pragma once

#include <cstdint>

namespace nibble {

// The loops of the probes, each in the file of its instruction set; see the table in peaks.cpp.

void run_fp32_avx2(std::int64_t steps);
void run_int16_avx2(std::int64_t steps);
void run_int8_avx2(std::int64_t steps);
void run_int4_avx2(std::int64_t steps);
void run_int2_avx2(std::int64_t steps);
void run_int16_add_avx2(std::int64_t steps);
void run_int8_add_avx2(std::int64_t steps);
void run_int4_add_avx2(std::int64_t steps);
void run_int2_add_avx2(std::int64_t steps);

void run_fp32_avx512(std::int64_t steps);
void run_int8_avx512_vnni(std::int64_t steps);
void run_bf16_avx512_bf16(std::int64_t steps);
void run_int2_avx512_vbmi(std::int64_t steps);
void run_table128_avx512_vbmi(std::int64_t steps);
void run_int2_add_avx512_vbmi(std::int64_t steps);
void run_table128_add_avx512_vbmi(std::int64_t steps);

void run_int8_avx512_amx(std::int64_t steps);
void run_bf16_avx512_amx(std::int64_t steps);

}  // namespace nibble
