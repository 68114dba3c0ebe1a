/**
 * The command line of a script: its options, or what the header of the script says of them.
 *
 * Reads: `process.argv`, and the file of the script.
 * Feeds: the scripts of package.json.
 * Guarantees: `--help` prints the header and ends with 0; an option that there is not ends with 2, says
 * which, and prints it too. Nothing has begun by then.
 */
import { readFileSync } from "node:fs"
import { type ParseArgsConfig, parseArgs } from "node:util"

type Known = NonNullable<ParseArgsConfig["options"]>
type Values<Options extends Known> = ReturnType<
  typeof parseArgs<{ readonly options: Options }>
>["values"]

/** What the comment at the top of a file says. */
const headerOf = (file: string): string => {
  const [, header = ""] = /^\/\*\*\n(.*?)\*\//s.exec(readFileSync(file, "utf8")) ?? []
  return header.replaceAll(/^ \*( |$)/gm, "").trim()
}

/** Reads the options of the script in `file`, as `parseArgs` of Node does. */
export const read = <const Options extends Known>(
  file: string,
  options: Options
): Values<Options> => {
  if (process.argv.slice(2).includes("--help")) {
    console.log(headerOf(file))
    process.exit(0)
  }
  try {
    return parseArgs({ options }).values as Values<Options>
  } catch (error) {
    console.error(`${error instanceof Error ? error.message : error}\n\n${headerOf(file)}`)
    process.exit(2)
  }
}
