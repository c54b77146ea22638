import { assert, assertEquals, assertMatch, assertStringIncludes, assertThrows } from "@std/assert";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { nativeFunctions, tooLong } from "../../scripts/chores/lengths.ts";
import { FILE_LINES, fileLength, FUNCTION_LINES } from "../../scripts/chores/lint.ts";
import { root } from "../../scripts/frame/step.ts";
import { runtime } from "../../scripts/setup.ts";

const lines = (count: number, line: string = "x();"): string => `${line}\n`.repeat(count);

test("lengths: a long file must say in its first line why it is one thing", () => {
  assertEquals(fileLength(lines(FILE_LINES)), undefined);
  assertStringIncludes(fileLength(lines(FILE_LINES + 1))!, `${FILE_LINES + 1} lines`);
  assertEquals(fileLength("// One table: its rows are read together.\n" + lines(FILE_LINES)), undefined);
  assertEquals(fileLength("/* One kernel. */\n" + lines(FILE_LINES)), undefined);
  for (const first of ["// Decode attention.", "/**", "", 'const x = "one";', "// None are done."]) {
    assert(fileLength(`${first}\n${lines(FILE_LINES)}`), first);
  }
});

test("lengths: `deno lint` counts the lines of every kind of function", () => {
  const folder = mkdtempSync(join(tmpdir(), "vecinfer-lint-"));
  try {
    const file = join(folder, "a.ts"), body = (count: number): string => lines(count - 2, "  void 0;");
    const kinds = [
      (count: number) => `export function a(): void {\n${body(count)}}\n`,
      (count: number) => `export const b = (): void => {\n${body(count)}};\n`,
      (count: number) => `export const c: () => void = function () {\n${body(count)}};\n`,
      (count: number) => `export class D {\ne(): void {\n${body(count)}}\n}\n`,
      (count: number) => `export class F {\nconstructor() {\n${body(count)}}\n}\n`,
    ];
    const lint = (text: string): string => {
      writeFileSync(file, text);
      const args = ["lint", "--compact", "--config", join(root, "deno.json"), file];
      const env = { ...process.env, NO_COLOR: "1", DENO_NO_UPDATE_CHECK: "1" };
      return spawnSync(runtime("deno"), args, { cwd: folder, encoding: "utf8", env }).stderr;
    };
    assertMatch(lint(kinds.map((kind) => kind(FUNCTION_LINES)).join("\n")), /^Checked 1 file/m);
    const long = lint(kinds.map((kind) => kind(FUNCTION_LINES + 1)).join("\n"));
    assertEquals(long.match(/a function of 81 lines/g)?.length, kinds.length, long);
    assertStringIncludes(lint(lines(FILE_LINES + 1, "void 0;")), `${FILE_LINES + 1} lines: cut the file`);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

const native = `
#define OPEN {
namespace vi {
struct alignas(16) Page : Base<int> {
  int size() const { return 1; }  // a brace in a comment: {
  static constexpr int table[] = {1, 2, 3};
  enum class Kind { a, b };
};
template <class T, int N = (1 + 2)>
int host(T* out,
         const char* text = "}") {
  auto each = [&](int i) {
    return i;
  };
  if (out) { each('{'); } else { /* } */ each(1); }
  return 0;
}
template <int D> __global__ void __launch_bounds__(256) kernel(int* x) {
  x[0] = R"(}})"[0];
}
}
extern "C" VI_API int vi_call(void) {
  return 0;
}
extern "C" {
int vi_other(void) { return 0; }
}
`;

test("lengths: functions of C++ are measured from their declaration to their last brace", () => {
  assertEquals(nativeFunctions(native).map(({ head, line, lines }) => [head.match(/(\w+)\(/g)?.at(-1), line, lines]), [
    ["size(", 5, 1],
    ["host(", 9, 9],
    ["kernel(", 18, 3],
    ["vi_call(", 22, 3],
    ["vi_other(", 26, 1],
  ]);
  const error = assertThrows(() => nativeFunctions("#if A\nvoid f() {\n#else\nvoid g() {\n#endif\n}\n"));
  assertStringIncludes((error as Error).message, "braces do not balance");
});

test("lengths: host functions have a limit, kernels and their parts none", () => {
  const body = (count: number): string => `() {\n${lines(count - 2)}}\n`;
  assertEquals(tooLong("a.cu", `void f${body(FUNCTION_LINES)}`), []);
  const [found, ...others] = tooLong("a.cu", `int x;\nvoid f${body(FUNCTION_LINES + 1)}`);
  assertEquals([found.split(":").slice(0, 2), others], [["a.cu", "2"], []]);
  assertEquals(tooLong("a.cu", `__global__ void f${body(200)}__device__ void g${body(150)}`), []);
  assertEquals(tooLong("a.cu", lines(FILE_LINES + 1)).length, 1);
  assertEquals(tooLong("a.cu", "void f() {").length, 1);
});
