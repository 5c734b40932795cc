# The jars that a script of this directory needs; it sets NAME and JARS and sources this file.
# Those of NAME-pom.xml come from Maven Central into JARS, a directory of the cache, and are checked
# against NAME.sha256, which pin rewrites.

CACHE="$PWD/.cache/$NAME"
SUMS="$PWD/tests/runners/$NAME.sha256"

fail() { echo "$NAME.sh: $*" >&2; exit 1; }

download() {
  command -v mvn >/dev/null || fail "Maven is needed (Debian: maven openjdk-17-jre-headless)"
  rm -rf "$JARS"
  mkdir -p "$JARS"
  mvn -q -B -f "tests/runners/$NAME-pom.xml" \
    org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$JARS" >"$CACHE/mvn.log" 2>&1 ||
    fail "the jars cannot be had from Maven; see $CACHE/mvn.log"
}

checked() {  # the jars are those of the list, and no others
  [ -d "$JARS" ] && (cd "$JARS" && sha256sum --check --quiet --strict "$SUMS" >/dev/null 2>&1) &&
    [ "$(find "$JARS" -name '*.jar' | wc -l)" = "$(wc -l <"$SUMS")" ]
}

fetch() {
  checked && return
  download
  checked || fail "the jars in $JARS are not those of tests/runners/$NAME.sha256"
}

pin() {
  download
  (cd "$JARS" && sha256sum -- *.jar) >"$SUMS"
  echo "$NAME.sh: $(wc -l <"$SUMS") jars, $(du -sh "$JARS" | cut -f1)"
}
