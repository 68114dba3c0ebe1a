import { shortForms } from "./ShortForms.ts"

shortForms("network")
