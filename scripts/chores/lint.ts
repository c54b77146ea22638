/**
 * A plugin of `deno lint`: a function has at most 80 lines; a file has at most 400, or a first line that says why it is one
 * thing.
 *
 * @module
 */

/** Most lines of a function, from its first to its last. */
export const FUNCTION_LINES = 80;

/** Most lines of a file that does not say why it is one thing. */
export const FILE_LINES = 400;

/**
 * What is wrong with the length of a file of this text, or undefined. A long one begins with a comment in whose first line
 * stands what it is one of: `// One kernel, whose phases share its registers.`
 */
export function fileLength(text: string): string | undefined {
  const lines = text.replace(/\n$/, "").split("\n");
  if (lines.length <= FILE_LINES || /^(\/\/|\/\*).*\bone\b/i.test(lines[0])) return undefined;
  return `${lines.length} lines: cut the file, or begin it with a comment that says why it is one thing ("// One ...")`;
}

/** What is wrong with a function of this many lines. */
export function functionLength(lines: number): string {
  return `a function of ${lines} lines; ${FUNCTION_LINES} are the most: name its parts`;
}

const plugin: Deno.lint.Plugin = {
  name: "vecinfer",
  rules: {
    "file-length": {
      create: (context) => ({
        Program(node): void {
          const message = fileLength(context.sourceCode.text);
          if (message !== undefined) context.report({ node, message });
        },
      }),
    },
    "function-length": {
      create(context): Deno.lint.LintVisitor {
        const measure = (node: Deno.lint.Node): void => {
          const lines = context.sourceCode.getText(node).split("\n").length;
          if (lines > FUNCTION_LINES) context.report({ node, message: functionLength(lines) });
        };
        return { FunctionDeclaration: measure, FunctionExpression: measure, ArrowFunctionExpression: measure };
      },
    },
  },
};

export default plugin;
