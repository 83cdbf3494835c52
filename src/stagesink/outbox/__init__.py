"""Where uploads wait that cannot land: whole on this disk, until they are whole in their backend.

:mod:`.snapshot` takes a file's bytes, :mod:`.entry` says what is to land where, :mod:`.store` keeps entries through any
crash, :mod:`.index` remembers how landing them went, and :mod:`.sync` lands them, with the same engine as any upload.
"""
