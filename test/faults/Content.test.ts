import { shortForms } from "./ShortForms.ts"

shortForms("content")
