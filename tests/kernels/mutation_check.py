#!/usr/bin/env python3
"""Changes one constant in a copy of a kernel's file, links it with the kernels' tests, and expects a failure.

usage: mutation_check.py CHECKOUT BUILD

Every row names a file, a text that occurs in it exactly once, and what replaces it. A mutation that no test
notices is a hole in the tests.
"""
import concurrent.futures
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

MUTATIONS = [
    ("kernels/int8_avx2.cpp", "{kQuad, 2, -32768, 32767}", "{kQuad, 2, -32768, 65535}"),
    ("kernels/int8_avx2.cpp", "input + tap.offset", "input + tap.offset + (tap.index == 8 ? 1 : 0)"),
    ("kernels/int8_avx2.cpp", "o < kOutputBlock; o += kPair", "o < kPair; o += kPair"),
    ("kernels/int16_avx2.cpp", "INT32_MAX / activation_limit(layer.activation_bits)", "INT32_MAX / activation_limit(layer.activation_bits) * 2"),
    ("kernels/int16_avx2.cpp", "_mm256_set1_ps(65536.0F)", "_mm256_set1_ps(65535.0F)"),
    ("kernels/int16_avx2.cpp", "0xD8", "0xE4"),
    ("kernels/int4_avx2.cpp", "longest_run(positive, 32767)", "longest_run(positive, 65535)"),
    ("kernels/int4_avx2.cpp", "word[1] > 32767", "word[1] > 65535"),
    ("kernels/int4_avx2.cpp", "filter.outputs_of[output][point] *", "1U *"),
    ("kernels/int4_avx2.cpp", "_mm256_sub_epi8(d2, d3), times(1)", "_mm256_sub_epi8(d2, d3), times(2)"),
    ("kernels/int4_avx2.cpp", "i == 0 && ends.before", "i == 0 && ends.behind"),
    ("kernels/int4_avx2.cpp", "run_part(1, row.positions - 2, 0, kLines)", "run_part(1, row.positions - 2, 1, kLines)"),
    ("kernels/line_filter.h", "kThird = 0xAAAAAAAB", "kThird = 0xAAAAAAAA"),
    ("kernels/line_filter.h", "kFifteenth = 0xEEEEEEEF", "kFifteenth = 0xEEEEEEEE"),
    ("kernels/line_filter.h", "{8, 8, 5, 8, 4, 8}", "{8, 8, 5, 8, 4, 7}"),
    ("kernels/line_filter.h", "return (four ? -4 : 1) * (g0 - g1 + g2)", "return (four ? -4 : 1) * (g0 + g1 - g2)"),
    ("kernels/line_filter.h", "{15, 10, 10, 11, 7, 15}", "{7, 5, 5, 5, 3, 7}"),
    ("kernels/output_avx2.h", "_mm256_set1_epi8(4)", "_mm256_set1_epi8(5)"),
    ("kernels/look_up_tables.h", "longest_run(ranges, 255)", "longest_run(ranges, 510)"),
    ("kernels/int2_avx2.cpp", "_mm256_set1_epi16(0x4B00)", "_mm256_set1_epi16(0x4B01)"),
    ("kernels/output_avx2.h", "_mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)", "_mm256_setr_epi32(0, 4, 1, 5, 2, 6, 7, 3)"),
    ("kernels/output_avx2.h", "4 * dword + k", "4 * dword + (k ^ 1)"),
    ("kernels/geometry.cpp", "{down >> 1} * output.pitch()", "{down / 2} * output.pitch()"),
    ("kernels/geometry.cpp", "fill_rows(same + all, copy_stride", "fill_rows(same + all + 1, copy_stride"),
    ("kernels/geometry.cpp", "in[2 * column + 1]", "in[2 * column]"),
    ("kernels/quads_avx512_vnni.h", "24 - 8 * K), 24)", "24 - 7 * K), 24)"),
    ("kernels/quads_avx512_vnni.h", "0x0F0B0703", "0x0F0B0307"),
    ("kernels/quads_avx512_vnni.h", "0x80808000U", "0x80800000U"),
    ("kernels/int4_avx512_vnni.cpp", "-filter.added[point] * limit * sum", "-filter.added[point] * sum"),
    ("kernels/line_filter.h", "Words::add(Words::add(b, twice_w), m(5))", "Words::add(b, m(5))"),
    ("kernels/int4_avx512_vnni.cpp", "block.first_part + number % block.parts", "number % block.parts"),
    ("kernels/int8_avx512_amx.cpp", "order * layout.order_bytes(shape.kernel) +", "0 +"),
    ("kernels/int8_avx512_amx.cpp", "begin.input + quad * call.input.group_stride",
     "begin.input + call.input.group_stride"),
    ("kernels/int8_avx512_amx.cpp", "tap->offset == begin->offset + behind * tap_stride", "tap->offset >= begin->offset"),
    ("kernels/int8_avx512_amx.cpp", "part_ * kPartLanes * lane_bytes", "part_ * lane_bytes"),
    ("kernels/int8_avx512_amx.cpp", "if (++row_ == rows_) row_ = 0;", "if (++row_ == rows_) row_ = 1;"),
    ("kernels/int8_avx512_amx.cpp", "std::min(call.last_channel - call.first_channel,", "std::min(1,"),
    ("kernels/tiles_amx.h", "tdpbsud", "tdpbssd"),
    ("kernels/look_up_tables.h", "+= 2 * sets[1].tables[number].minimum", "+= sets[1].tables[number].minimum"),
    ("kernels/look_up_tables.h", "level % 2 != 0", "level != 0"),
    ("kernels/int2_avx512_vbmi.cpp", "activation_sums == nullptr ? 1 : 2", "1"),
    ("kernels/int2_inputs_avx512_vbmi.h", "before[l] = sums_[(row + l) % lines_]", "before[l] = sums_[l % lines_]"),
    ("kernels/int2_inputs_avx512_vbmi.h", "all = sum + last[0] + last[1]", "all = sum + last[0] + last[0]"),
    ("kernels/int2_inputs_avx512_vbmi.h", "std::min(first + kRun, line_steps_)", "line_steps_"),
    ("kernels/int2_inputs_avx512_vbmi.h", "row == 0 || l == line_count_ - 1", "row == 0"),
    ("kernels/int2_inputs_avx512_vbmi.h", "1 + kMostBytes / stride", "kPositions"),
    ("kernels/int2_inputs_avx512_vbmi.h", "line((row + l) % line_count_)", "line(l)"),
    ("kernels/int2_inputs_avx512_vbmi.h", "kLanes : kPositions * stride", "kLanes : stride"),
    ("kernels/look_up_tables.h", "value / shared_, groups_ * group_ + value % shared_",
     "value % kernel_, groups_ * group_ + value / kernel_"),
    ("kernels/int2_inputs_avx512_vbmi.h", "moves_ = lines_[l].is_below(lines_[l - 1], input_.row_stride)", "moves_ = true"),
    ("kernels/int2_inputs_avx512_vbmi.h", "_mm512_srli_epi16(middle, 2), first_channel", "_mm512_srli_epi16(middle, 2), middle"),
    ("kernels/int2_inputs_avx512_vbmi.h", "= ~__mmask64{}", "= column == 0 ? 0 : ~__mmask64{}"),
    ("kernels/look_up_tables.h", "column == 0 ? 0 : shared_", "shared_"),
    ("kernels/int2_avx512_vbmi.cpp", "add_minima(order.shared_minima_row(row))", "add_minima(order.shared_minima_row(0))"),
    ("kernels/int2_avx512_vbmi.cpp", "third[k] < ValueTable::kLast", "third[k] < ValueTable::kLast + 8"),
    ("kernels/int2_avx512_vbmi.cpp", "stage.derived_thresholds[2] < ValueTable::kLast",
     "stage.derived_thresholds[2] < ValueTable::kLast + 8"),
    ("kernels/int2_avx512_vbmi.cpp", "above(three), count", "above(two), count"),
    ("kernels/int2_avx512_vbmi.cpp", "existing << left & 0x3F", "existing & 0x3F"),
    ("kernels/int2_avx512_vbmi.cpp", "in_bytes(existing >> right)", "in_bytes(existing)"),
    ("kernels/features.cpp", "~0x7FFF", "~0xFFFF"),
    ("kernels/features.cpp", "_mm_unpacklo_epi32(quad(2), quad(3))", "_mm_unpacklo_epi32(quad(3), quad(2))"),
    ("kernels/int2_avx512_vbmi.cpp", "r == first_runs ? first_runs : 2", "first_runs"),
    ("kernels/output_avx512.h", "std::memset(limits, 255", "std::memset(limits, 254"),
    ("kernels/thresholds.cpp", "< static_cast<int>(k)", "<= static_cast<int>(k)"),
    ("kernels/int2_avx512_vbmi.cpp", "add_step(words, 32,", "add_step(words, 24,"),
    ("kernels/int2_avx512_vbmi.cpp", "loaded_at_once<Word>(from + block_bytes)", "loaded_at_once<Word>(from)"),
    ("kernels/int2_avx512_vbmi.cpp", "joins = before != 0 &&", "joins = before == 4 &&"),
    ("kernels/int2_avx512_vbmi.cpp", "chunk.first - chunk.first % kTileChannels + kChunk", "chunk.first + kChunk"),
    ("kernels/steps.h", "part.derived.data += row *", "part.derived.data += 0 *"),
    ("kernels/features.cpp", "== 1 ? 256 : 65536", "== 1 ? 512 : 65536"),
    ("kernels/output_avx512.h", "channel < before ?", "channel < before - 1 ?"),
    ("kernels/int8_avx512_vnni.cpp", "kEight && b == kParts", "kEight && b == kParts + 1"),
    ("kernels/int8_avx512_vnni.cpp", "block.channel + kBlockChannels * unit :", "block.channel :"),
    ("kernels/int8_avx512_vnni.cpp", "eight != (waiting.form == Form::eight_channels)", "false"),
    ("kernels/geometry.cpp", "store(right + at, load(same + at + Bytes))", "store(right + at, load(same + at))"),
    ("kernels/geometry.cpp", "const __m128i first = _mm_srli_si128(border, kRegisterBytes - Bytes)",
     "const __m128i first = _mm_slli_si128(border, kRegisterBytes - Bytes)"),
    ("kernels/steps.h", "return beyond == 0;", "return beyond >= 0;"),
    ("kernels/run_packing.cpp", "a[i].lowest + b[i].lowest < lane_.lowest ||", "a[i].lowest < lane_.lowest ||"),
]


# What a file's name says that the CPU must have, as /proc/cpuinfo spells it.
FEATURES = {"amx": "amx_int8", "vbmi": "avx512vbmi", "vnni": "avx512_vnni", "avx512": "avx512bw"}


def missing_feature(file):
    flags = pathlib.Path("/proc/cpuinfo").read_text()
    return next((feature for word, feature in FEATURES.items() if word in file and feature not in flags), None)


def compile_commands(build):
    rows = json.loads((build / "compile_commands.json").read_text())
    return [dict(row, words=[w for w in shlex.split(row["command"]) if w != "ccache"]) for row in rows]


def object_of(row):
    return pathlib.Path(row["directory"]) / row["words"][row["words"].index("-o") + 1]


def included(source, checkout):
    """The project's files that `source` includes, and what those include."""
    found, waiting = set(), [source]
    while waiting:
        for name in re.findall(r'#include "([^"]+)"', waiting.pop().read_text()):
            header = checkout / name
            if header.exists() and header not in found:
                found.add(header)
                waiting.append(header)
    return found


def compile_copy(row, source, include, output):
    words = list(row["words"])
    words[words.index("-o") + 1] = str(output)
    words[words.index("-c") + 1] = str(source)
    for flag, count in (("-MF", 2), ("-MT", 2), ("-MD", 1)):
        if flag in words:
            del words[words.index(flag):words.index(flag) + count]
    words.append("-Wno-error")  # a mutation may leave something unused
    # The copy of a header is found before the original.
    words.insert(next(i for i, w in enumerate(words) if w.startswith("-I")), f"-I{include}")
    subprocess.run(words, cwd=row["directory"], check=True)


class Checker:
    def __init__(self, checkout, build):
        self.checkout, self.build = checkout, build
        rows = compile_commands(build)
        self.kernels = {pathlib.Path(row["file"]): row for row in rows
                        if "/nibble_kernels.dir/" in str(object_of(row))}
        self.tests = [row for row in rows if "/kernels_test.dir/" in str(object_of(row))]
        self.sanitizers = [w for w in self.tests[0]["words"] if w.startswith("-fsanitize")]
        self.headers = {source: included(source, checkout) for source in self.kernels}

    def users(self, file):
        changed = self.checkout / file
        return [source for source in self.kernels if source == changed or changed in self.headers[source]]

    def refuse_wrong_rows(self):
        for file, old, _ in MUTATIONS:
            count = (self.checkout / file).read_text().count(old)
            if count != 1:
                sys.exit(f"{file}: '{old}' occurs {count} times, expected once; change the mutation")
            if not self.users(file):
                sys.exit(f"{file}: no file of kernels/ includes it; change the mutation")

    def survives(self, mutation):
        file, old, new = mutation
        if feature := missing_feature(file):
            print(f"skipped, no {feature} here: {file}: {old} -> {new}", flush=True)
            return False
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder) / file
            copy.parent.mkdir(parents=True)
            copy.write_text((self.checkout / file).read_text().replace(old, new))
            objects = []
            for source in self.users(file):
                objects.append(pathlib.Path(folder) / f"{source.name}.o")
                compile_copy(self.kernels[source], copy if source == self.checkout / file else source, folder,
                             objects[-1])
            program = pathlib.Path(folder) / "mutant"
            subprocess.run(["c++", "-o", program, *self.sanitizers, *(object_of(row) for row in self.tests), *objects,
                            self.build / "kernels/libnibble_kernels.a", "-lgmock_main", "-lgmock", "-lgtest",
                            "-lpthread"], check=True)
            result = subprocess.run([program, "--gtest_brief=1", "--gtest_fail_fast", "--gtest_filter=-*Nightly*"],
                                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        print(f"{'noticed ' if result.returncode else 'SURVIVED'} {file}: {old} -> {new}", flush=True)
        return result.returncode == 0


def main():
    checker = Checker(*(pathlib.Path(p).resolve() for p in sys.argv[1:3]))
    checker.refuse_wrong_rows()
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        survivors = sum(pool.map(checker.survives, MUTATIONS))
    sys.exit(1 if survivors else 0)


main()
