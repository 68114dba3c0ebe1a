/**
 * Runs an example by its name, `npm run example booking`, or lists those that there are: a file
 * `<name>.ts` beside this one, or a folder `<name>` with a `main.ts` in it.
 *
 * Reads: this folder, and the first sentence of the header of each.
 * Feeds: standard output.
 * Guarantees: without a name it ends with 0, with a wrong one with 2.
 */
import { existsSync, readdirSync, readFileSync } from "node:fs"

/** Names are in lower case, which tells them from the modules that they share. */
const names = readdirSync(import.meta.dirname)
  .filter((entry) => /^[a-z-]+(\.ts)?$/.test(entry) && entry !== "main.ts")
  .map((entry) => entry.replace(/\.ts$/, ""))

const scriptOf = (name: string): URL => {
  const file = new URL(`./${name}.ts`, import.meta.url)
  return existsSync(file) ? file : new URL(`./${name}/main.ts`, import.meta.url)
}

const firstSentenceOf = (name: string): string => {
  const [, header = ""] = /^\/\*\*(.*?)\*\//s.exec(readFileSync(scriptOf(name), "utf8")) ?? []
  const [first] = header
    .replaceAll(/\s+\*\s+|\s+/g, " ")
    .trim()
    .split(/(?<=\.) /)
  return first ?? ""
}

const list = () => names.map((name) => `  ${name.padEnd(12)}${firstSentenceOf(name)}`).join("\n")

// What is left is for the example.
const [name] = process.argv.splice(2, 1)

if (name === undefined || name === "--help") {
  console.log(`npm run example <name>\n\n${list()}`)
} else if (names.includes(name)) {
  await import(scriptOf(name).href)
} else {
  console.error(`There is no example "${name}". There are:\n\n${list()}`)
  process.exitCode = 2
}
