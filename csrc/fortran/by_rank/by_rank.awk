# by_rank.awk: from a file of the Fortran module, the same for compilers that have no dimension(..)
# in procedures of Fortran: each procedure with arrays of any rank once for each rank of them.
#
#   awk -f by_rank.awk FILE.f90 FILE.f90 >by_rank/FILE.f90        # the file is read twice
#
# The rules that the files keep:
#   - A dummy argument of any rank has a line of its own: "    type(*), dimension(..), ... :: x". A
#     procedure has one or two.
#   - Procedures of a type are bound as "procedure, private :: NAME, ..." and "generic :: G => NAME,
#     ...", each on one line. Others become a generic interface of their name.
#   - "! of rank 1" at the end of that line: no other rank is needed.
#   - Scalars are class(*), which not every compiler passes to C as its own type: mpiserve_scalars has
#     the functions of C for them, as s_NAME for c_NAME.
BEGIN { MAX = 8 } # MPISERVE_MAX_DIMS

function is_start() { return /^  (subroutine|function) [a-z_]+\(/ }
function is_end() { return /^  end (subroutine|function) / }
function is_binding() { return /^    (procedure, private|generic) :: .*[^&]$/ }
function is_any_rank() { return /^    type\(\*\), dimension\(\.\.\)/ }

NR == FNR {
  if (is_start()) { name = $2; sub(/\(.*/, "", name) }
  if (is_any_rank() && /! of rank 1$/) only_vector[name] = 1
  if (is_any_rank()) { if (!arrays[name]++) names[++n_names] = name }
  if (is_binding()) for (i = split(after_mark(), found, ", "); i; i--) bound[found[i]] = 1
  next
}

/^contains$/ { for (i = 1; i <= n_names; i++) interface_of(names[i]) }
is_start() { name = $2; sub(/\(.*/, "", name); n_lines = 0 }
is_start(), is_end() {
  lines[++n_lines] = $0
  if (is_end()) procedures(name)
  next
}
is_binding() { bindings(); next }
{
  sub(/by_rank = \.false\./, "by_rank = .true.")
  print
}
/^  use mpiserve_c$/ { print "  use mpiserve_scalars" }

function combinations(name,    i, j, n) {
  n = 0
  for (i = 0; i <= MAX; i++)
    for (j = 0; j <= (arrays[name] == 2 ? MAX : 0); j++) {
      first[++n] = i
      second[n] = j
    }
  return n
}

function specific(name, k) {
  return name "_" first[k] (arrays[name] == 2 ? "_" second[k] : "")
}

# The names of a binding.
function after_mark(    names_of) {
  names_of = $0
  sub(/.*(::|=>) /, "", names_of)
  return names_of
}

function bindings(    before, i, k, n, n_bound, bound_here) {
  before = substr($0, 1, length($0) - length(after_mark()))
  n_bound = split(after_mark(), bound_here, ", ")
  for (i = 1; i <= n_bound; i++) {
    if (!(bound_here[i] in arrays)) print before bound_here[i]
    n = bound_here[i] in arrays ? combinations(bound_here[i]) : 0
    for (k = 1; k <= n; k++) print before specific(bound_here[i], k)
  }
}

function interface_of(name,    k, n) {
  if (name in bound || name in only_vector) return
  print "  interface " name
  n = combinations(name)
  for (k = 1; k <= n; k++) print "    module procedure " specific(name, k)
  print "  end interface " name "\n"
}

function procedures(name,    k, n) {
  if (!(name in arrays)) {
    for (k = 1; k <= n_lines; k++) print lines[k]
  } else if (name in only_vector) {
    one(name, name, 1, 1)
  } else {
    n = combinations(name)
    for (k = 1; k <= n; k++) one(name, specific(name, k), first[k], second[k])
  }
}

function one(name, called, rank, rank_of_second,    i, line) {
  for (i = 1; i <= n_lines; i++) {
    line = lines[i]
    if (i == 1) sub(name "\\(", called "(", line)
    if (i == n_lines) sub(name "$", called, line)
    if (line ~ /^    type\(\*\), dimension\(\.\.\)/) {
      sub(/type\(\*\), dimension\(\.\.\)/, declared(rank), line)
      rank = rank_of_second
    } else if (lines[i] ~ /c_(array|input|output|open|get_comm)\(/ && called ~ /_0$/) {
      sub(/c_/, "s_", line)
    }
    print line
  }
  print ""
}

function declared(rank,    colons) {
  if (!rank) return "class(*)"
  colons = ":"
  while (--rank) colons = colons ",:"
  return "type(*), dimension(" colons ")"
}
