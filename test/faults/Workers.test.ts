import { shortForms } from "./ShortForms.ts"

shortForms("workers")
